//! `umbra check`: what is wrong with a configuration, its stores and its remote, all at once; changes nothing.

use super::CheckArgs;
use super::failure::Failure;
use super::output;
use crate::config;
use crate::daemon::check::check;

pub async fn run(args: CheckArgs) -> Result<(), Failure> {
    let file = args.config.display().to_string();
    let config = config::load(&args.config).map_err(|error| Failure::new("check", &file).because(&error))?;
    let findings = check(&config).await;
    let lines: Vec<String> = findings.iter().map(|finding| format!("{finding}\n")).collect();
    output::print(&lines.concat())?;
    match findings.iter().filter(|finding| finding.is_wrong()).count() {
        0 => Ok(()),
        1 => Err(Failure::new("check", file).why("there is a problem")),
        many => Err(Failure::new("check", file).why(format!("there are {many} problems"))),
    }
}
