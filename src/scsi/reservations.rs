//! Persistent reservations: who is registered, who holds what, and what PERSISTENT RESERVE OUT makes of it (SPC-4, 5.13).
//!
//! A pure state machine: it knows no CDBs, no nexuses and no time. An action is done whole or refused and changes
//! nothing; whoever owns the state tells the attentions that it leads to, and keeps it if it is to be kept.
//!
//! Invariants:
//! - A port is registered once at most, with a key that is not zero.
//! - A reservation that is held by one is held by a registered port; one of all registrants has registrants.
//! - The generation counts the actions that changed registrations, and wraps.

use super::attention::Attention;

/// Registrations of one unit at most; what a full table keeps in memory and in its document is small.
pub(super) const REGISTRATIONS_MAX: usize = 256;

/// An initiator port behind a target port: what a registration is of, and what survives a nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitiatorPort {
    /// Its iSCSI name.
    pub name: String,
    pub isid: [u8; 6],
    /// RELATIVE TARGET PORT IDENTIFIER of the port that it came through.
    pub target_port: u16,
}

/// Bytes of an iSCSI name (RFC 7143, 4.2.7.1).
const NAME_MAX: usize = 223;

impl InitiatorPort {
    /// Its name, cut where it is longer than names are.
    pub(super) fn bounded_name(&self) -> &str {
        let mut end = self.name.len().min(NAME_MAX);
        while !self.name.is_char_boundary(end) {
            end -= 1;
        }
        &self.name[..end]
    }

    /// Its TransportID (SPC-4, 7.6.4.6): the name and, in format 01b, the ISID.
    pub(super) fn transport_id(&self) -> Vec<u8> {
        let isid = self.isid.map(|byte| format!("{byte:02x}")).concat();
        let mut text = format!("{},i,0x{isid}", self.bounded_name()).into_bytes();
        // Ended by a zero at least, in whole words.
        text.resize((text.len() + 1).next_multiple_of(4).max(20), 0);
        let [high, low] = (text.len() as u16).to_be_bytes();
        [&[0x45, 0, high, low], &text[..]].concat()
    }
}

/// SPC-4, table 60; the codes are those of the TYPE field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Type {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

impl Type {
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    pub fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Others may not even read.
    fn is_exclusive_access(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess | Self::ExclusiveAccessRegistrantsOnly | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Every registrant may do what the holder may.
    fn is_for_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Every registrant is a holder.
    pub fn is_of_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registration {
    pub port: InitiatorPort,
    pub key: u64,
}

/// A reservation of the whole unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reservation {
    pub kind: Type,
    /// None where all registrants are.
    pub holder: Option<InitiatorPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservations {
    /// PRGENERATION.
    pub generation: u32,
    pub registrations: Vec<Registration>,
    pub held: Option<Reservation>,
    /// APTPL of the last registration: all this outlasts a loss of power.
    pub persists: bool,
}

/// A service action of PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// `ignore` is of REGISTER AND IGNORE EXISTING KEY.
    Register {
        ignore: bool,
        persists: bool,
    },
    Reserve(Type),
    Release(Type),
    Clear,
    Preempt(Type),
}

/// RESERVATION KEY and SERVICE ACTION RESERVATION KEY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub current: u64,
    pub new: u64,
}

/// Why an action was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Conflict,
    /// The one who holds the reservation releases another type of it.
    WrongType,
    /// PREEMPT of no key.
    NoKey,
    /// There is no room for another registration.
    Full,
}

/// What others are to be told, and whose registrations are gone by a preemption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    pub attentions: Vec<(InitiatorPort, Attention)>,
    pub preempted: Vec<InitiatorPort>,
}

impl Reservations {
    pub fn key_of(&self, port: &InitiatorPort) -> Option<u64> {
        self.registrations.iter().find(|registration| registration.port == *port).map(|registration| registration.key)
    }

    pub fn is_holder(&self, port: &InitiatorPort) -> bool {
        self.held.as_ref().is_some_and(|held| match &held.holder {
            Some(holder) => holder == port,
            None => self.key_of(port).is_some(),
        })
    }

    /// Whether a port may change the medium, or else only read it.
    pub fn allows(&self, port: &InitiatorPort, changes: bool) -> bool {
        let Some(held) = &self.held else { return true };
        self.is_holder(port)
            || held.kind.is_for_registrants() && self.key_of(port).is_some()
            || !changes && !held.kind.is_exclusive_access()
    }

    /// Does what a port asks for.
    pub fn act(&mut self, port: &InitiatorPort, action: Action, keys: Keys) -> Result<Effects, Refused> {
        let registered = self.key_of(port);
        if let Action::Register { ignore, persists } = action {
            if !ignore && registered.unwrap_or(0) != keys.current {
                return Err(Refused::Conflict);
            }
            return self.register(port, registered.is_some(), keys.new, persists);
        }
        if registered != Some(keys.current) {
            return Err(Refused::Conflict);
        }
        match action {
            Action::Reserve(kind) => self.reserve(port, kind),
            Action::Release(kind) => self.release(port, kind),
            Action::Clear => Ok(self.clear(port)),
            Action::Preempt(kind) => self.preempt(port, kind, keys.new),
            Action::Register { .. } => unreachable!("is above"),
        }
    }

    fn register(
        &mut self,
        port: &InitiatorPort,
        registered: bool,
        key: u64,
        persists: bool,
    ) -> Result<Effects, Refused> {
        let mut effects = Effects::default();
        match (registered, key) {
            // To leave without having come is done at once.
            (false, 0) => return Ok(effects),
            (false, _) if self.registrations.len() >= REGISTRATIONS_MAX => return Err(Refused::Full),
            (false, key) => self.registrations.push(Registration { port: port.clone(), key }),
            (true, 0) => self.unregister(port, &mut effects),
            (true, key) => {
                let own = self.registrations.iter_mut().find(|registration| registration.port == *port);
                own.expect("is registered").key = key;
            }
        }
        self.persists = persists;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    /// A reservation goes with the last who holds it, which registrants of the others' kind are told (5.13.11.2.3).
    fn unregister(&mut self, port: &InitiatorPort, effects: &mut Effects) {
        let held = self.is_holder(port);
        self.registrations.retain(|registration| registration.port != *port);
        if let Some(Reservation { kind, .. }) = self.held.take_if(|reservation| match reservation.holder {
            Some(_) => held,
            None => self.registrations.is_empty(),
        }) && kind.is_for_registrants()
        {
            self.tell_others(port, Attention::ReservationsReleased, effects);
        }
    }

    fn tell_others(&self, port: &InitiatorPort, attention: Attention, effects: &mut Effects) {
        let others = self.registrations.iter().filter(|registration| registration.port != *port);
        effects.attentions.extend(others.map(|registration| (registration.port.clone(), attention)));
    }

    fn establish(&mut self, port: &InitiatorPort, kind: Type) {
        self.held = Some(Reservation { kind, holder: (!kind.is_of_all()).then(|| port.clone()) });
    }

    fn reserve(&mut self, port: &InitiatorPort, kind: Type) -> Result<Effects, Refused> {
        match &self.held {
            None => self.establish(port, kind),
            Some(held) if self.is_holder(port) && held.kind == kind => {}
            Some(_) => return Err(Refused::Conflict),
        }
        Ok(Effects::default())
    }

    fn release(&mut self, port: &InitiatorPort, kind: Type) -> Result<Effects, Refused> {
        let mut effects = Effects::default();
        match &self.held {
            Some(held) if self.is_holder(port) => {
                if held.kind != kind {
                    return Err(Refused::WrongType);
                }
                self.held = None;
                if kind.is_for_registrants() {
                    self.tell_others(port, Attention::ReservationsReleased, &mut effects);
                }
            }
            _ => {}
        }
        Ok(effects)
    }

    fn clear(&mut self, port: &InitiatorPort) -> Effects {
        let mut effects = Effects::default();
        self.tell_others(port, Attention::ReservationsPreempted, &mut effects);
        self.registrations.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        effects
    }

    /// 5.13.11.2.6: the key of the holder, or no key where all are holders, takes the reservation over. Every other key
    /// ends registrations only, one's own among them.
    fn preempt(&mut self, port: &InitiatorPort, kind: Type, key: u64) -> Result<Effects, Refused> {
        let taken_over = self.held.clone().filter(|held| match &held.holder {
            Some(holder) => self.key_of(holder) == Some(key),
            None => key == 0,
        });
        if key == 0 && taken_over.is_none() {
            return Err(Refused::NoKey);
        }
        let goes = |registration: &Registration| match &taken_over {
            Some(held) => registration.port != *port && (held.holder.is_none() || registration.key == key),
            None => registration.key == key,
        };
        let (gone, stay) = std::mem::take(&mut self.registrations).into_iter().partition::<Vec<_>, _>(goes);
        self.registrations = stay;
        if gone.is_empty() && taken_over.is_none() {
            return Err(Refused::Conflict);
        }
        let preempted: Vec<_> = gone.into_iter().map(|gone| gone.port).filter(|gone| gone != port).collect();
        let attentions = preempted.iter().map(|gone| (gone.clone(), Attention::RegistrationsPreempted)).collect();
        let mut effects = Effects { attentions, preempted };
        match taken_over {
            Some(held) => {
                self.establish(port, kind);
                if held.kind != kind {
                    self.tell_others(port, Attention::ReservationsReleased, &mut effects);
                }
            }
            // Of all registrants, none is left.
            None if self.registrations.is_empty() => self.held = None,
            None => {}
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }
}
