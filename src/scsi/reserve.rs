//! The commands about reservations: PERSISTENT RESERVE IN and OUT (SPC-4, 6.15 and 6.16), RESERVE(6) and RELEASE(6)
//! (SPC-2, 7.16 and 7.21).
//!
//! The two kinds exclude each other (SPC-4, 5.13.3; CRH is zero): while anybody is registered RESERVE(6) conflicts, and
//! under RESERVE(6) PERSISTENT RESERVE OUT does.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::{BufMut, Bytes, BytesMut};

use super::blocks::all;
use super::persistence;
use super::reservations::{Action, Effects, Keys, Refused, Reservations, Type};
use super::sense::{
    INSUFFICIENT_REGISTRATION_RESOURCES, INTERNAL_TARGET_FAILURE, INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST, INVALID_RELEASE, Sense,
};
use super::shape::Command;
use super::unit::{Core, Port, Reserved};
use super::{Answer, Refusal};
use crate::disk::Pending;
use crate::task::blocking;

/// In byte 20 of the parameter list (SPC-4, 6.16.3).
const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;
const PREEMPT_AND_ABORT: u8 = 0x05;

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Conflict => Self::Conflict,
            Refused::WrongType => INVALID_RELEASE.into(),
            Refused::NoKey => INVALID_FIELD_IN_PARAMETER_LIST.at_parameter(8).into(),
            Refused::Full => INSUFFICIENT_REGISTRATION_RESOURCES.into(),
        }
    }
}

pub(super) fn reserve(core: &Core, port: &Port) -> Result<Bytes, Refusal> {
    // A PERSISTENT RESERVE OUT that is being done came first.
    let _none = core.reserving.try_lock().map_err(|_| Refusal::Conflict)?;
    core.change_reserved(|reserved| {
        excluded(reserved)?;
        match reserved.by_reserve {
            Some(holder) if holder != port.number => Err(Refusal::Conflict),
            _ => {
                reserved.by_reserve = Some(port.number);
                Ok(Bytes::new())
            }
        }
    })
}

/// Of what another holds nothing is released, and nothing is said.
pub(super) fn release(core: &Core, port: &Port) -> Result<Bytes, Refusal> {
    core.change_reserved(|reserved| {
        excluded(reserved)?;
        reserved.by_reserve.take_if(|holder| *holder == port.number);
        Ok(Bytes::new())
    })
}

fn excluded(reserved: &Reserved) -> Result<(), Refusal> {
    if reserved.persistent.registrations.is_empty() { Ok(()) } else { Err(Refusal::Conflict) }
}

/// One at a time. What it changes is durable, where it is to be, before anybody sees it.
pub(super) fn persistent_out(core: Arc<Core>, port: Arc<Port>, command: &Command, data: Bytes) -> Pending<Answer> {
    let format = core.format();
    let aborts = command.cdb.service_action() == PREEMPT_AND_ABORT;
    let (action, keys) = match parse(command, &data, core.settings.keep.is_some()) {
        Ok(parsed) => parsed,
        Err(sense) => return Pending::ready(Ok(Answer::check(sense, format))),
    };
    Pending::later(async move {
        let _one = core.reserving.lock().await;
        Ok(match act(&core, &port, action, keys).await {
            Ok(effects) => {
                if aborts {
                    finish_changes(&core, &effects).await;
                }
                Answer::good(Bytes::new())
            }
            Err(refusal) => Answer::refused(refusal, format),
        })
    })
}

async fn act(core: &Arc<Core>, port: &Port, action: Action, keys: Keys) -> Result<Effects, Refusal> {
    let (was, mut next) = {
        let reserved = core.reserved.lock();
        if reserved.by_reserve.is_some() {
            return Err(Refusal::Conflict);
        }
        (reserved.persistent.clone(), reserved.persistent.clone())
    };
    let effects = next.act(&port.initiator, action, keys)?;
    if next != was && (was.persists || next.persists) {
        store(core, &next).await?;
    }
    core.change_reserved(|reserved| reserved.persistent = next);
    for (initiator, attention) in &effects.attentions {
        core.ports_of(initiator).iter().for_each(|port| port.attentions.raise(*attention));
    }
    Ok(effects)
}

/// Without APTPL nothing is to be found after a loss of power.
async fn store(core: &Arc<Core>, next: &Reservations) -> Result<(), Refusal> {
    let document = persistence::encode(if next.persists { next } else { const { &NOTHING } });
    let core = core.clone();
    let stored = blocking(move || core.settings.keep.as_ref().map_or(Ok(()), |keep| keep.store(&document))).await;
    match stored {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => tracing::error!(%error, "persistent reservations cannot be stored; the change is refused"),
        Err(died) => tracing::error!(error = %died, "persistent reservations cannot be stored; the change is refused"),
    }
    Err(INTERNAL_TARGET_FAILURE.into())
}

const NOTHING: Reservations = Reservations { generation: 0, registrations: Vec::new(), held: None, persists: false };

/// Those that were preempted change nothing any more when this returns: what they had begun has ended, and what they
/// begin asks for leave first.
async fn finish_changes(core: &Core, effects: &Effects) {
    for port in effects.preempted.iter().flat_map(|initiator| core.ports_of(initiator)) {
        // What was admitted and not begun never is.
        port.aborts.fetch_add(1, SeqCst);
        drop(port.changing.write().await);
    }
}

fn parse(command: &Command, data: &Bytes, keeps: bool) -> Result<(Action, Keys), Sense> {
    let list = all(data, command)?;
    let key = |at: usize| list[at..at + 8].iter().fold(0, |key, byte| key << 8 | u64::from(*byte));
    let keys = Keys { current: key(0), new: key(8) };
    let (scope, kind, flags) = (command.cdb.byte(2) >> 4, Type::of(command.cdb.byte(2) & 0x0F), list[20]);
    let refused = SPEC_I_PT | ALL_TG_PT | if keeps { 0 } else { APTPL };
    let register = |ignore| {
        if flags & refused != 0 {
            return Err(INVALID_FIELD_IN_PARAMETER_LIST.at_parameter(20));
        }
        Ok(Action::Register { ignore, persists: flags & APTPL != 0 })
    };
    // Only the whole unit can be reserved.
    let with_type = |action: fn(Type) -> Action| match kind {
        _ if scope != 0 => Err(INVALID_FIELD_IN_CDB.at_cdb_bit(2, 7)),
        Some(kind) => Ok(action(kind)),
        None => Err(INVALID_FIELD_IN_CDB.at_cdb_bit(2, 3)),
    };
    let action = match command.cdb.service_action() {
        0x00 => register(false)?,
        0x01 => with_type(Action::Reserve)?,
        0x02 => with_type(Action::Release)?,
        0x03 => Action::Clear,
        0x04 | PREEMPT_AND_ABORT => with_type(Action::Preempt)?,
        0x06 => register(true)?,
        _ => return Err(INVALID_FIELD_IN_CDB.at_cdb_bit(1, 4)),
    };
    Ok((action, keys))
}

/// The answer may be longer than the initiator wants it.
pub(super) fn persistent_in(core: &Core, command: &Command) -> Bytes {
    let reserved = core.reserved.lock();
    let persistent = &reserved.persistent;
    match command.cdb.service_action() {
        0x00 => read_keys(persistent),
        0x01 => read_reservation(persistent),
        0x02 => report_capabilities(persistent, core.settings.keep.is_some()),
        _ => read_full_status(persistent),
    }
}

/// PRGENERATION and ADDITIONAL LENGTH.
fn counted(persistent: &Reservations, rest: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8 + rest.len());
    bytes.put_u32(persistent.generation);
    bytes.put_u32(rest.len() as u32);
    bytes.put_slice(rest);
    bytes.freeze()
}

fn read_keys(persistent: &Reservations) -> Bytes {
    let keys: Vec<u8> =
        persistent.registrations.iter().flat_map(|registration| registration.key.to_be_bytes()).collect();
    counted(persistent, &keys)
}

fn read_reservation(persistent: &Reservations) -> Bytes {
    let mut rest = Vec::new();
    if let Some(held) = &persistent.held {
        // No key is that of all registrants.
        rest.put_u64(held.holder.as_ref().and_then(|holder| persistent.key_of(holder)).unwrap_or(0));
        rest.put_slice(&[0, 0, 0, 0, 0, held.kind as u8, 0, 0]);
    }
    counted(persistent, &rest)
}

/// SPC-4, 6.15.4.
fn report_capabilities(persistent: &Reservations, keeps: bool) -> Bytes {
    let ptpl_c = u8::from(keeps);
    // TMV: the types follow. ALLOW COMMANDS 000b: nothing is said. PTPL_A.
    let types = 0x80 | u8::from(persistent.persists);
    // WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC and WR_EX; EX_AC_AR.
    Bytes::copy_from_slice(&[0, 8, ptpl_c, types, 0xEA, 0x01, 0, 0])
}

fn read_full_status(persistent: &Reservations) -> Bytes {
    let mut rest = Vec::new();
    for registration in &persistent.registrations {
        let holds = persistent.is_holder(&registration.port);
        let transport_id = registration.port.transport_id();
        rest.put_u64(registration.key);
        rest.put_u32(0);
        // R_HOLDER, and what is held.
        let kind = persistent.held.as_ref().filter(|_| holds).map_or(0, |held| held.kind as u8);
        rest.put_slice(&[u8::from(holds), kind, 0, 0, 0, 0]);
        rest.put_u16(registration.port.target_port);
        rest.put_u32(transport_id.len() as u32);
        rest.put_slice(&transport_id);
    }
    counted(persistent, &rest)
}
