//! Commands of a session: their data, their way to the unit, and their responses (section 11.3, 11.4, 11.7 and 11.8).

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::transfer::{Transfer, Wrong};
use super::turns::{Era, Turn};
use super::{
    Begun, IMMEDIATE_MAX, IN_FLIGHT_BYTES_MAX, Issued, Receiving, Running, Session, SessionError, StatusSn, WINDOW,
    next_tag,
};
use crate::disk::{self, DiskError, Pending};
use crate::iscsi::frames::Frame;
use crate::iscsi::pdu::{
    self, DataIn, DataOut, FINAL, NO_TAG, ReadyToTransfer, ScsiCommand, ScsiResponse, command, data_in, reject,
    residual,
};
use crate::scsi::{Answer, Command, Sense, Status};

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    pub(super) fn command(&mut self, frame: Frame) -> Result<(), SessionError> {
        let head = ScsiCommand::decode(&frame.bhs);
        let Some((target, nexus)) = &self.unit else {
            self.reject(&frame.bhs, reject::COMMAND_NOT_SUPPORTED);
            return Ok(());
        };
        let task = head.task;
        if self.tags.contains_key(&task) || self.receiving.contains_key(&task) || self.held.contains_key(&task) {
            self.reject(&frame.bhs, reject::TASK_IN_PROGRESS);
            return Ok(());
        }
        if pdu::is_immediate(&frame.bhs) && self.tasks() >= WINDOW as usize + IMMEDIATE_MAX {
            self.reject(&frame.bhs, reject::TOO_MANY_IMMEDIATE);
            return Ok(());
        }
        let (reads, writes) = (head.flags & command::READ != 0, head.flags & command::WRITE != 0);
        let expected = if reads || writes { head.expected } else { 0 };
        if self.tasks() == 0 {
            self.era = Era::FIRST;
        }
        let eras = self.era.with(head.flags & command::ATTRIBUTE);
        // Before it is admitted: a reset that comes between ends it.
        let epoch = target.epochs.current();
        let admitted = if eras.is_none() {
            Err(nexus.refuse(Sense::INVALID_MESSAGE_ERROR))
        } else if reads && writes || !frame.ahs.is_empty() {
            // No command that we know goes in both directions, or is longer than 16 bytes.
            Err(nexus.refuse(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT))
        } else {
            match nexus.admit(head.lun, &head.cdb) {
                // Data of the other direction than the one that the initiator says: it would be told that all went well.
                Ok(command) if reads && command.data_out() > 0 => {
                    Err(nexus.refuse(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT))
                }
                admitted => admitted,
            }
        };
        let (era, next_era) = eras.unwrap_or((self.era, self.era));
        let mut issued =
            Issued { task, lun: head.lun, expected, writes, data_out: 0, durable: false, weight: 0, era, epoch };
        let command = match admitted {
            Ok(command) => command,
            Err(answer) => return self.respond(&issued, answer),
        };
        self.era = next_era;
        issued.data_out = command.data_out();
        issued.durable = command.makes_durable();
        // Of what the initiator offers less of, the unit makes what it can.
        let length = issued.data_out.min(if writes { expected } else { 0 });
        if !writes {
            issued.weight = command.data_in() as usize;
            self.begin_or_hold(issued, command, Bytes::new())?;
            return Ok(());
        }
        let is_final = head.flags & FINAL != 0;
        if is_final && frame.data.len() >= length as usize && self.parameters.immediate_data {
            issued.weight = frame.data.len().max(command.data_in() as usize);
            return self.begin_or_hold(issued, command, frame.data.slice(..length as usize));
        }
        match Transfer::new(length, expected, frame.data, is_final, &self.parameters) {
            Err(wrong) => {
                let refused = nexus.refuse(sense_of(wrong));
                self.respond(&issued, refused)
            }
            Ok(transfer) => {
                self.receiving.insert(task, Receiving { issued, command, transfer });
                self.go_on_receiving(task)
            }
        }
    }

    pub(super) fn has_room(&self, weight: usize) -> bool {
        let under_way = self.in_flight_bytes + self.outbox.len();
        under_way == 0 || under_way + weight <= IN_FLIGHT_BYTES_MAX
    }

    /// Whose turn it is, behind all that has not ended.
    fn turn(&self) -> Turn {
        // Sessions without ordered tasks are spared the looking.
        if self.era == Era::FIRST {
            return Turn::EVERYBODYS;
        }
        let begun = self.tags.values().map(|begun| begun.era);
        let receiving = self.receiving.values().map(|receiving| receiving.issued.era);
        let held = self.held.values().map(|(issued, ..)| issued.era);
        Turn::after(begun.chain(receiving).chain(held))
    }

    pub(super) fn begin_or_hold(&mut self, issued: Issued, command: Command, data: Bytes) -> Result<(), SessionError> {
        if self.waiting.is_empty() && self.has_room(issued.weight) && self.turn().is_of(issued.era) {
            self.in_flight_bytes += issued.weight;
            return self.begin(issued, command, data);
        }
        self.waiting.push_back(issued.task);
        self.held.insert(issued.task, (issued, command, data));
        Ok(())
    }

    /// Begins a command whose weight is counted, and responds if the unit answers at once.
    pub(super) fn begin(&mut self, issued: Issued, command: Command, data: Bytes) -> Result<(), SessionError> {
        let Some((_, nexus)) = &self.unit else { return Ok(()) };
        let (task, era) = (issued.task, issued.era);
        let mut running = Running { issued: Some(issued), answer: nexus.execute(command, data) };
        if let Pending::Ready(_) = running.answer
            && let Poll::Ready((issued, answer)) = Pin::new(&mut running).poll(&mut Context::from_waker(Waker::noop()))
        {
            self.in_flight_bytes -= issued.weight;
            return self.answered(&issued, answer);
        }
        self.tags.insert(task, Begun { era, aborted: false });
        self.running.push(running);
        Ok(())
    }

    /// Where in the queue the task stands that is to go on now: the first whose turn it is, if there is room for it.
    fn next_waiting(&self) -> Option<usize> {
        let turn = self.turn();
        for (at, task) in self.waiting.iter().enumerate() {
            let held = self.held.get(task).map(|(issued, ..)| (issued.era, issued.weight));
            let receiving = self.receiving.get(task).map(|receiving| &receiving.issued);
            match held.or(receiving.map(|issued| (issued.era, issued.data_out as usize))) {
                // What it waits for may stand behind it: an older task whose data came later.
                Some((era, _)) if !turn.is_of(era) => {}
                Some((_, weight)) => return self.has_room(weight).then_some(at),
                // It was ended meanwhile.
                None => return Some(at),
            }
        }
        None
    }

    pub(super) fn can_begin_waiting(&self) -> bool {
        self.next_waiting().is_some()
    }

    /// Begins what waits, or asks for its data: in the order in which it came, as far as it is its turn.
    pub(super) fn begin_waiting(&mut self) -> Result<(), SessionError> {
        while let Some(task) = self.next_waiting().and_then(|at| self.waiting.remove(at)) {
            if let Some((issued, command, data)) = self.held.remove(&task) {
                self.in_flight_bytes += issued.weight;
                self.begin(issued, command, data)?;
            } else {
                self.ask(task);
            }
        }
        Ok(())
    }

    /// A command ended on the unit.
    pub(super) fn ended(&mut self, issued: Issued, answer: disk::Result<Answer>) -> Result<(), SessionError> {
        let aborted = self.tags.remove(&issued.task).is_some_and(|begun| begun.aborted);
        self.in_flight_bytes -= issued.weight;
        let over = self.unit.as_ref().is_some_and(|(target, _)| target.epochs.is_over(&issued.epoch));
        if !aborted && !over && self.end.is_none() {
            self.answered(&issued, answer)?;
        } else if let (Some((target, _)), Some(error)) = (&self.unit, unwritten(&issued, &answer)) {
            target.unit.owe(error);
        }
        self.managements.iter_mut().for_each(|management| _ = management.ended.remove(&issued.task));
        Ok(())
    }

    pub(super) fn answered(&mut self, issued: &Issued, answer: disk::Result<Answer>) -> Result<(), SessionError> {
        self.untold = self.untold.or(unwritten(issued, &answer));
        match answer {
            Ok(answer) => self.respond(issued, answer),
            // What the bare array would do when it loses power: its initiators log in anew.
            Err(_) => Err(SessionError::StoreLost),
        }
    }

    pub(super) fn respond(&mut self, issued: &Issued, answer: Answer) -> Result<(), SessionError> {
        if let Some((target, _)) = &self.unit
            && target.unit.incarnation() != self.incarnation
        {
            // It may have forgotten what this initiator was told is done, and its flush would not say so.
            return Err(SessionError::StoreLost);
        }
        let Answer { status, sense, data } = answer;
        // What the command would have transferred, were there no bound; data of one that failed does not count.
        let transfers = match status {
            Status::Good if !issued.writes => issued.data_out.max(data.len() as u32),
            _ => issued.data_out,
        };
        let (flag, rest) = if transfers > issued.expected {
            (residual::OVERFLOW, transfers - issued.expected)
        } else if transfers < issued.expected {
            (residual::UNDERFLOW, issued.expected - transfers)
        } else {
            (0, 0)
        };
        let sent = data.len().min(issued.expected as usize);
        if status == Status::Good && !issued.writes && sent > 0 {
            self.send_data(issued, data.slice(..sent), flag, rest);
            return Ok(());
        }
        let data = sense.map_or_else(Bytes::new, |sense| {
            let sense = sense.encode();
            [&(sense.len() as u16).to_be_bytes()[..], &sense].concat().into()
        });
        let response = ScsiResponse {
            flags: FINAL | flag,
            status: status as u8,
            task: issued.task,
            residual: rest,
            ..ScsiResponse::default()
        };
        self.put(response.encode(data.len()), data, StatusSn::Own);
        Ok(())
    }

    /// Data-In PDUs, the last of which carries the good status (11.7.3).
    pub(super) fn send_data(&mut self, issued: &Issued, data: Bytes, flag: u8, rest: u32) {
        let (sent_max, burst_max) = (self.parameters.sent_max as usize, self.parameters.burst_max as usize);
        let (mut from, mut data_sn) = (0, 0);
        while from < data.len() {
            // A sequence ends at each whole burst (13.13).
            let burst_end = (from / burst_max + 1) * burst_max;
            let to = data.len().min(from + sent_max).min(burst_end);
            let is_last = to == data.len();
            let mut head = DataIn {
                flags: if is_last || to == burst_end { FINAL } else { 0 },
                lun: issued.lun,
                task: issued.task,
                transfer: NO_TAG,
                data_sn,
                offset: from as u32,
                ..DataIn::default()
            };
            if is_last {
                head.flags |= data_in::STATUS | flag;
                head.status = Status::Good as u8;
                head.residual = rest;
            }
            let status_sn = if is_last { StatusSn::Own } else { StatusSn::None };
            self.put(head.encode(to - from), data.slice(from..to), status_sn);
            (from, data_sn) = (to, data_sn + 1);
        }
    }

    pub(super) fn data(&mut self, head: DataOut, data: Bytes) -> Result<(), SessionError> {
        // Of a command that has ended: refused, aborted, or reset.
        let Some(receiving) = self.receiving.get_mut(&head.task) else { return Ok(()) };
        match receiving.transfer.take(&head, data) {
            Ok(()) => self.go_on_receiving(head.task),
            Err(wrong) => {
                tracing::debug!(task = head.task, ?wrong, "data that does not fit its command");
                let issued = self.stop_receiving(head.task);
                let refused = self.unit.as_ref().map(|(_, nexus)| nexus.refuse(sense_of(wrong)));
                match issued.zip(refused) {
                    Some((issued, refused)) => self.respond(&issued, refused),
                    None => Ok(()),
                }
            }
        }
    }

    /// Asks for what is missing, or begins the command that has all its data.
    pub(super) fn go_on_receiving(&mut self, task: u32) -> Result<(), SessionError> {
        let Some(receiving) = self.receiving.get(&task) else { return Ok(()) };
        if receiving.transfer.is_complete() {
            let Some(Receiving { mut issued, command, transfer }) = self.receiving.remove(&task) else { return Ok(()) };
            if issued.weight > 0 {
                return self.begin(issued, command, transfer.into_data());
            }
            // A read whose initiator says that it writes brings data, too.
            issued.weight = (transfer.received() as usize).max(command.data_in() as usize);
            return self.begin_or_hold(issued, command, transfer.into_data());
        }
        if !receiving.transfer.wants(&self.parameters) {
            return Ok(());
        }
        let Issued { weight, data_out, era, .. } = receiving.issued;
        // Data that were asked for out of turn would take the room of what has to end before.
        if weight > 0 || (self.waiting.is_empty() && self.has_room(data_out as usize) && self.turn().is_of(era)) {
            self.ask(task);
        } else if !self.waiting.contains(&task) {
            self.waiting.push_back(task);
        }
        Ok(())
    }

    /// Asks for data, for which there is room (11.8).
    pub(super) fn ask(&mut self, task: u32) {
        let Some(receiving) = self.receiving.get_mut(&task) else { return };
        if receiving.issued.weight == 0 {
            receiving.issued.weight = receiving.issued.data_out as usize;
            self.in_flight_bytes += receiving.issued.weight;
        }
        let mut asked = Vec::new();
        while receiving.transfer.wants(&self.parameters) {
            asked.push(receiving.transfer.ask(self.tag, &self.parameters));
            self.tag = next_tag(self.tag);
        }
        let lun = receiving.issued.lun;
        for asked in asked {
            let r2t = ReadyToTransfer {
                flags: FINAL,
                lun,
                task,
                transfer: asked.transfer,
                r2t_sn: asked.number,
                offset: asked.offset,
                length: asked.length,
                ..ReadyToTransfer::default()
            };
            self.put(r2t.encode(0), Bytes::new(), StatusSn::Next);
        }
    }

    /// Gives up a command whose data is under way; what else comes of it is dropped.
    pub(super) fn stop_receiving(&mut self, task: u32) -> Option<Issued> {
        let Receiving { mut issued, .. } = self.receiving.remove(&task)?;
        self.in_flight_bytes -= std::mem::take(&mut issued.weight);
        Some(issued)
    }
}

/// What was to be durable and is not, by an error that comes once.
pub(super) fn unwritten(issued: &Issued, answer: &disk::Result<Answer>) -> Option<DiskError> {
    let sense = answer.as_ref().ok()?.sense.filter(|_| issued.durable)?;
    sense.of_a_change()
}

/// 11.4.7.2
fn sense_of(wrong: Wrong) -> Sense {
    match wrong {
        Wrong::Amount => Sense::INCORRECT_AMOUNT_OF_DATA,
        Wrong::Order => Sense::PROTOCOL_SERVICE_CRC_ERROR,
    }
}
