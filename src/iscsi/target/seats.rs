//! Who has a session with a target: at most one for each initiator port (section 4.3.1, the I_T nexus).
//!
//! A login of a port that has a session already takes its place (6.3.5, session reinstatement): an initiator that lost
//! its connection comes back before we know of the loss. The old session's operations end first, lest one of them change
//! the medium after something that the new session was told is done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long operations of an old session may hold up its successor. Initiators try again.
const REINSTATEMENT_MAX: Duration = Duration::from_secs(15);

/// An initiator port: its name and its session's identifier (4.2.7.1, 11.12.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    name: String,
    isid: [u8; 6],
}

impl Port {
    pub fn new(name: &str, isid: [u8; 6]) -> Self {
        Self { name: name.to_owned(), isid }
    }
}

#[derive(Clone, Default)]
pub struct Seats(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    seats: HashMap<Port, Arc<watch::Sender<bool>>>,
    /// Of each port that waits, the number of its newest login.
    waiting: HashMap<Port, u64>,
    logins: u64,
}

/// Held by a session, until the last of its operations has ended.
pub struct Seat {
    seats: Seats,
    port: Port,
    occupied: Arc<watch::Sender<bool>>,
    leave: watch::Receiver<bool>,
}

impl Seats {
    /// Takes the port's seat when whoever had it is gone; none if that takes too long, or the port logs in once more
    /// meanwhile: then nobody waits for this login any more.
    pub async fn take(&self, port: Port) -> Option<Seat> {
        let login = {
            let mut state = self.0.lock();
            state.logins += 1;
            let login = state.logins;
            state.waiting.insert(port.clone(), login);
            login
        };
        let seat = timeout(REINSTATEMENT_MAX, self.wait(&port, login)).await.ok().flatten();
        let waiting = &mut self.0.lock().waiting;
        if waiting.get(&port) == Some(&login) {
            waiting.remove(&port);
        }
        seat
    }

    async fn wait(&self, port: &Port, login: u64) -> Option<Seat> {
        loop {
            let before = {
                let mut state = self.0.lock();
                if state.waiting.get(port) != Some(&login) {
                    return None;
                }
                match state.seats.get(port) {
                    Some(before) => before.clone(),
                    None => {
                        let (occupied, leave) = watch::channel(false);
                        let occupied = Arc::new(occupied);
                        state.seats.insert(port.clone(), occupied.clone());
                        return Some(Seat { seats: self.clone(), port: port.clone(), occupied, leave });
                    }
                }
            };
            before.send_replace(true);
            before.closed().await;
        }
    }
}

impl Seat {
    /// Becomes true when another session wants the seat.
    pub fn leave(&self) -> watch::Receiver<bool> {
        self.leave.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seats = &mut self.seats.0.lock().seats;
        if seats.get(&self.port).is_some_and(|occupied| Arc::ptr_eq(occupied, &self.occupied)) {
            seats.remove(&self.port);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn a_port_has_one_seat_and_others_have_theirs() {
        let seats = Seats::default();
        let first = seats.take(Port::new("iqn.a", [1; 6])).await.unwrap();
        let _other_isid = seats.take(Port::new("iqn.a", [2; 6])).await.unwrap();
        let _other_name = seats.take(Port::new("iqn.b", [1; 6])).await.unwrap();
        let mut second = pin!(seats.take(Port::new("iqn.a", [1; 6])));
        assert!(poll!(&mut second).is_pending(), "two sessions of one port");
        assert!(*first.leave().borrow(), "the first was not told to leave");
        drop(first);
        let second = second.await.unwrap();
        assert!(!*second.leave().borrow());
        assert_eq!(seats.0.lock().seats.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_leave_keeps_its_seat() {
        let seats = Seats::default();
        let _first = seats.take(Port::new("iqn.a", [1; 6])).await.unwrap();
        assert!(seats.take(Port::new("iqn.a", [1; 6])).await.is_none());
    }

    /// It has given up and come again; when the old session ends at last, only the newest login is still there.
    #[tokio::test]
    async fn of_two_logins_that_wait_the_newest_gets_the_seat() {
        let seats = Seats::default();
        let port = || Port::new("iqn.a", [1; 6]);
        let old = seats.take(port()).await.unwrap();
        let (mut first, mut second) = (Box::pin(seats.take(port())), Box::pin(seats.take(port())));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        drop(old);
        assert!(first.await.is_none());
        let seat = second.await.unwrap();
        assert!(!*seat.leave().borrow(), "a login that nobody waits for evicted it");
    }
}
