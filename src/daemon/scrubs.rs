//! Keeps what the scheduled comparisons remember, in `<state>/scrub/<name>`. Losing it costs a round begun anew.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::state::{StateError, StateFolder};
use crate::clock::Clock;
use crate::snapshot::compare::Comparer;
use crate::snapshot::scrub::{Kept, Scrub};

/// The schedule of a volume, as its last run left it.
pub fn schedule(state: &Arc<StateFolder>, comparer: &Comparer, period: Duration, clock: &Clock) -> Scrub {
    let name = comparer.volume().name().to_owned();
    let path = state.path().join("scrub").join(&name);
    let kept = match super::state::read(&path) {
        Ok(text) => text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        Err(error) => {
            unusable(&name, &error);
            Kept::default()
        }
    };
    let keep = move |kept: Kept| {
        let text = serde_json::to_vec(&kept).expect("plain data has a JSON form");
        let folder = path.parent().expect("it was joined above");
        let kept = super::state::make_folder(folder).and_then(|()| super::state::replace(&path, &text));
        kept.unwrap_or_else(|error| unusable(&name, &error));
    };
    Scrub { period, clock: clock.clone(), kept, keep: Box::new(keep) }
}

fn unusable(volume: &str, error: &StateError) {
    warn!(volume, %error, "how far the scheduled comparison is cannot be kept");
}
