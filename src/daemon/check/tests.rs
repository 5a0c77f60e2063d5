use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::config;
use crate::daemon::{Gateway, Options};
use crate::restore::signature;
use crate::units::MIB;

fn configuration(folder: &Path, store: &str) -> Config {
    let text = format!(
        "state = \"state\"\n[listen]\nnbd = [\"127.0.0.1:0\", \"unix:nbd.sock\"]\n[remote]\nurl = \"file:remote\"\n\
         [[volume]]\nname = \"disk0\"\nstore = {store}\n[log]\nsize = \"256MiB\"\n"
    );
    config::parse(&text, folder).unwrap()
}

async fn lines(config: &Config) -> Vec<String> {
    check(config).await.iter().map(Finding::to_string).collect()
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_right_configuration_has_no_problem_and_nothing_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let config = configuration(temp.path(), "\"file:disk0.img\"\ncreate = \"64MiB\"");
    let lines = lines(&config).await;
    assert!(lines.iter().all(|line| line.starts_with("ok ")), "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("[[volume]] \"disk0\": store") && line.contains("will be made: 64.0 MiB"))
    );
    assert!(listing(temp.path()).is_empty());
}

#[tokio::test]
async fn every_problem_is_told_with_section_key_and_remedy() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("state"), "a file").unwrap();
    fs::write(temp.path().join("remote"), "a file").unwrap();
    fs::write(temp.path().join("nbd.sock"), "a file").unwrap();
    let findings = check(&configuration(temp.path(), "\"file:disk0.img\"")).await;
    let wrong: Vec<_> = findings.iter().filter(|finding| finding.is_wrong()).map(Finding::to_string).collect();
    for part in ["state = ", "[listen] nbd = ", "[remote] url = ", "[[volume]] \"disk0\": store = "] {
        assert!(wrong.iter().any(|line| line.contains(part)), "no problem with {part:?} in {wrong:#?}");
    }
    assert_eq!(wrong.len(), 4, "{wrong:#?}");
    assert!(wrong.iter().all(|line| line.contains("what to do: ")));
    assert_eq!(listing(temp.path()), ["nbd.sock", "remote", "state"]);
}

#[tokio::test]
async fn a_store_that_is_half_restored_or_locked_is_a_problem() {
    let temp = tempfile::tempdir().unwrap();
    let image = temp.path().join("disk0.img");
    let mut content = vec![0; MIB as usize];
    content[..512].copy_from_slice(&signature::unfinished());
    fs::write(&image, &content).unwrap();
    let config = configuration(temp.path(), "\"file:disk0.img\"");
    let store = || async { check(&config).await.into_iter().find(|finding| finding.key == "store").unwrap() };
    let found = store().await.to_string();
    assert!(found.starts_with("PROBLEM") && found.contains("did not finish"), "{found}");

    fs::write(&image, vec![1; MIB as usize]).unwrap();
    assert!(!store().await.is_wrong());
    let writer = crate::disk::FileDisk::open(&image, crate::disk::file::Options::default()).unwrap();
    let found = store().await.to_string();
    assert!(found.contains("locked"), "{found}");
    drop(writer);
    assert!(!store().await.is_wrong(), "the check leaves no lock behind");
}

#[tokio::test]
async fn a_size_that_is_not_that_of_create_is_only_noted() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("disk0.img"), vec![1; MIB as usize]).unwrap();
    let lines = lines(&configuration(temp.path(), "\"file:disk0.img\"\ncreate = \"64MiB\"")).await;
    assert!(lines.iter().any(|line| line.starts_with("note") && line.contains("create = 64.0 MiB")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("PROBLEM")), "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_gateway_is_no_problem_and_another_state_folder_is_told_who_has_the_name() {
    let temp = tempfile::tempdir().unwrap();
    let config = configuration(temp.path(), "\"file:disk0.img\"\ncreate = \"64MiB\"");
    let gateway = Gateway::start(&config, Options::default()).await.unwrap();
    let mut patience = 400;
    while gateway.volume("disk0").unwrap().state() != crate::volume::State::Shadowing {
        assert!(patience > 0, "the first copy does not end");
        patience -= 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let seen = lines(&config).await;
    assert!(seen.iter().all(|line| line.starts_with("ok ")), "{seen:#?}");
    for part in ["state = ", "nbd = ", "store = "] {
        let running = |line: &String| line.contains(part) && line.contains("by the running gateway");
        assert!(seen.iter().any(running), "nothing of the gateway at {part:?} in {seen:#?}");
    }
    gateway.stop().await.unwrap();
    // Another that holds the folder, and does not answer yet.
    let starting = crate::daemon::state::StateFolder::open(&config.state).unwrap();
    let seen = lines(&config).await;
    assert!(seen.iter().any(|line| line.contains("state = ") && line.contains("by the running gateway")), "{seen:#?}");
    drop(starting);
    let seen = lines(&config).await;
    assert!(seen.iter().any(|line| line.contains("continues volume")), "{seen:#?}");

    let image = temp.path().join("disk0.img");
    fs::rename(&image, temp.path().join("kept")).unwrap();
    let seen = lines(&config).await;
    assert!(seen.iter().any(|line| line.starts_with("PROBLEM") && line.contains("umbra restore")), "{seen:#?}");
    fs::copy(temp.path().join("kept"), &image).unwrap();
    let seen = lines(&config).await;
    assert!(seen.iter().any(|line| line.starts_with("PROBLEM") && line.contains("not the store")), "{seen:#?}");
    fs::rename(temp.path().join("kept"), &image).unwrap();

    let stranger = Config { state: temp.path().join("other-state"), ..config };
    let seen = lines(&stranger).await;
    assert!(seen.iter().any(|line| line.starts_with("PROBLEM") && line.contains("--adopt")), "{seen:#?}");
}

#[tokio::test]
async fn a_remote_that_does_not_answer_is_one_problem_however_many_volumes_there_are() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = configuration(temp.path(), "\"file:disk0.img\"\ncreate = \"64MiB\"");
    let text = "[remote]\nurl = \"s3://bucket\"\n[remote.options]\naws_endpoint = \"http://127.0.0.1:9\"\n\
                aws_allow_http = \"true\"\naws_access_key_id = \"a\"\naws_secret_access_key = \"hunter2\"\n\
                [listen]\nnbd = \"127.0.0.1:0\"\n[[volume]]\nname = \"a\"\nstore = \"file:a.img\"\ncreate = \"1MiB\"\n\
                [[volume]]\nname = \"b\"\nstore = \"file:b.img\"\ncreate = \"1MiB\"\n";
    let other = config::parse(text, temp.path()).unwrap();
    (config.remote, config.volumes) = (other.remote, other.volumes);
    let seen = lines(&config).await;
    let wrong: Vec<_> = seen.iter().filter(|line| line.starts_with("PROBLEM")).collect();
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].contains("[remote] url") && !wrong[0].contains("hunter2"), "{wrong:#?}");
}

#[tokio::test]
async fn a_lun_is_looked_at_when_we_know_as_whom() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = configuration(temp.path(), "\"iscsi://127.0.0.1:9/iqn.2003-01.org.array:vol1/0\"");
    let unknown = lines(&config).await;
    assert!(unknown.iter().any(|line| line.starts_with("note") && line.contains("[iscsi] initiator")), "{unknown:#?}");
    assert!(listing(temp.path()).is_empty(), "a check draws no name");
    config.initiator = config::Initiator::Named("iqn.2020-02.org.example:a".to_owned());
    let found = lines(&config).await;
    let wrong: Vec<_> = found.iter().filter(|line| line.starts_with("PROBLEM")).collect();
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].contains("iqn.2020-02.org.example:a") && wrong[0].contains("access list"), "{wrong:#?}");
}

#[test]
fn a_folder_is_judged_by_the_nearest_that_exists() {
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(Folder::look(temp.path()).unwrap(), Folder::There);
    assert_eq!(Folder::look(&temp.path().join("a/b/c")).unwrap(), Folder::Absent);
    fs::write(temp.path().join("file"), "").unwrap();
    assert!(matches!(Folder::look(&temp.path().join("file/a")), Err(Fault::NotAFolder(_))));
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o500)).unwrap();
        assert!(matches!(Folder::look(&temp.path().join("a")), Err(Fault::NoAccess { .. })));
    }
}
