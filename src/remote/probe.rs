//! Whether the store keeps create-if-absent, on which the one-writer promise rests. S3, Azure and Google do; some
//! compatible servers take the condition and ignore it, or keep it only while puts do not race.
//!
//! Crash: a few objects of some bytes stay under `probe/`; nobody reads them.

use bytes::Bytes;
use futures_util::future::join_all;

use super::{PutOutcome, Remote, RemoteError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionalPuts {
    /// Of racing puts one wins, and its bytes stay.
    Kept,
    /// A second put was accepted: a fenced writer could overwrite the chain.
    Ignored,
}

/// Puts that race for one key: servers that look first and write then were seen to accept all of them.
const RACERS: u8 = 8;
/// Keys that are raced for. A server that loses the race rarely may keep one by luck.
const ROUNDS: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("probe for conditional puts")]
    Remote(#[from] RemoteError),
    #[error("no random name for the probe")]
    Random(#[source] getrandom::Error),
}

/// Lets puts of a new object race, and looks whether one alone has won.
pub async fn conditional_puts(remote: &Remote) -> Result<ConditionalPuts, ProbeError> {
    for _ in 0..ROUNDS {
        let mut name = [0; 16];
        crate::random::fill(&mut name).map_err(ProbeError::Random)?;
        let key = format!("probe/{:032x}", u128::from_be_bytes(name));
        if race(remote, &key).await? == ConditionalPuts::Ignored {
            return Ok(ConditionalPuts::Ignored);
        }
    }
    Ok(ConditionalPuts::Kept)
}

async fn race(remote: &Remote, key: &str) -> Result<ConditionalPuts, RemoteError> {
    let body = |racer: u8| Bytes::from(vec![racer; 512]);
    let puts = (0..RACERS).map(|racer| remote.put_unlimited(key, body(racer)));
    let outcomes = join_all(puts).await;
    let winners: Vec<u8> = (0..RACERS)
        .zip(&outcomes)
        .filter(|(_, outcome)| matches!(outcome, Ok(PutOutcome::Created)))
        .map(|(racer, _)| racer)
        .collect();
    if winners.len() > 1 {
        return Ok(ConditionalPuts::Ignored);
    }
    // One more, with retries: an error above (each racer has one attempt) may have left no object at all.
    let late = remote.put_new(key, body(RACERS)).await?;
    if late == PutOutcome::Created && winners.len() == 1 {
        return Ok(ConditionalPuts::Ignored);
    }
    let stands = remote.get(key).await?;
    let unchanged = match winners[..] {
        [winner] => stands == body(winner),
        _ => late == PutOutcome::Exists || stands == body(RACERS),
    };
    Ok(if unchanged { ConditionalPuts::Kept } else { ConditionalPuts::Ignored })
}
