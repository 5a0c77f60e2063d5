//! What a target sends, PDU by PDU.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{ANSWERS_MAX, Completion, DEPTH_MAX, Direction, InFlight, LEAVE_MAX, Leaving, Link, LinkError, Residual};
use crate::iscsi::frames::Frame;
use crate::iscsi::pdu::{
    self, AsyncMessage, DataIn, FINAL, LogoutResponse, NO_TAG, NopIn, NopOut, ReadyToTransfer, Reject, ScsiResponse,
    data_in, event,
};
use crate::scsi::{Received, Status};

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    pub(super) fn frame(&mut self, frame: Frame) -> Result<(), LinkError> {
        let bhs = &frame.bhs;
        match pdu::opcode(bhs) {
            DataIn::OPCODE => self.data_in(DataIn::decode(bhs), frame.data),
            ScsiResponse::OPCODE => self.response(ScsiResponse::decode(bhs), &frame.data),
            ReadyToTransfer::OPCODE => self.ready_to_transfer(ReadyToTransfer::decode(bhs)),
            NopIn::OPCODE => self.nop_in(NopIn::decode(bhs)),
            AsyncMessage::OPCODE => self.message(AsyncMessage::decode(bhs), &frame.data),
            LogoutResponse::OPCODE => self.logged_out(LogoutResponse::decode(bhs)),
            Reject::OPCODE => {
                let opcode = frame.data.first().map_or(0xff, |byte| byte & 0x3f);
                Err(LinkError::Rejected { reason: Reject::decode(bhs).reason, opcode })
            }
            _ => Err(LinkError::Broken("a PDU that nothing of ours is answered with")),
        }
    }

    /// Takes the number of a response, whose turn it must be (4.2.2.2).
    fn status(&mut self, status_sn: u32) -> Result<(), LinkError> {
        if status_sn != self.status_sn {
            return Err(LinkError::Broken("a status out of order"));
        }
        self.status_sn = self.status_sn.wrapping_add(1);
        Ok(())
    }

    /// Takes what every PDU says of the window (4.2.2.1). It does not become smaller.
    fn window(&mut self, expected: u32, max: u32) -> Result<(), LinkError> {
        if pdu::is_after(expected, self.command_sn) {
            return Err(LinkError::Broken("a command expected behind one that was not sent"));
        }
        // Both are passed over if they contradict each other.
        if !pdu::is_after(expected.wrapping_sub(1), max) && pdu::is_after(max, self.command_sn_max) {
            self.command_sn_max = max;
        }
        Ok(())
    }

    fn data_in(&mut self, head: DataIn, data: Bytes) -> Result<(), LinkError> {
        self.window(head.expected_command_sn, head.command_sn_max)?;
        let waiting = self.in_flight.get_mut(&head.task).ok_or(LinkError::Broken("data of no command"))?;
        let Direction::In(incoming) = &mut waiting.transfer else {
            return Err(LinkError::Broken("data of a command that reads none"));
        };
        incoming.take(&head, data).map_err(LinkError::Broken)?;
        waiting.since = Instant::now();
        if head.flags & data_in::STATUS == 0 {
            return Ok(());
        }
        if head.flags & FINAL == 0 {
            return Err(LinkError::Broken("a status before the last data"));
        }
        self.status(head.status_sn)?;
        self.complete(head.task, head.status, None, Residual::new(head.flags, head.residual)?)
    }

    fn response(&mut self, head: ScsiResponse, data: &[u8]) -> Result<(), LinkError> {
        self.status(head.status_sn)?;
        self.window(head.expected_command_sn, head.command_sn_max)?;
        if head.response != 0 {
            // Target failure (11.4.3): whether it was done is not known, so that nothing is said of it.
            let lost = self.in_flight.remove(&head.task);
            return lost.map(drop).ok_or(LinkError::Broken("a response to no command"));
        }
        self.complete(head.task, head.status, sense(data), Residual::new(head.flags, head.residual)?)
    }

    fn complete(
        &mut self,
        task: u32,
        status: u8,
        sense: Option<Received>,
        residual: Residual,
    ) -> Result<(), LinkError> {
        let waiting = self.in_flight.remove(&task).ok_or(LinkError::Broken("a response to no command"))?;
        self.progress = Instant::now();
        let status = Status::decode(status);
        let sense = sense.filter(|_| status == Some(Status::CheckCondition));
        if status == Some(Status::CheckCondition)
            && self.watch.see(sense)
            && let Some(sense) = sense
        {
            self.unsent.push(waiting.into_job());
            return Err(LinkError::Changed(sense));
        }
        if let (Some(Status::Good), Direction::Out(outgoing)) = (status, &waiting.transfer)
            && (!outgoing.is_sent() || waiting.end > self.sent())
        {
            // Whatever it has done, it cannot have been with this data.
            return Err(LinkError::Broken("a command done without its data"));
        }
        self.adapt(status);
        let data = if let Direction::In(incoming) = waiting.transfer { incoming.finish() } else { Bytes::new() };
        // Whoever asked may not care any more.
        let _ = waiting.answer.send(Ok(Completion { status, sense, data, residual }));
        Ok(())
    }

    /// Halves what the target has under way when that is too much for it, and feels its way up again.
    fn adapt(&mut self, status: Option<Status>) {
        if let Some(Status::TaskSetFull | Status::Busy) = status {
            self.depth = self.depth.min(self.in_flight.len() + 1).div_ceil(2);
            self.done_at_depth = 0;
        } else if self.depth < DEPTH_MAX {
            self.done_at_depth += 1;
            if self.done_at_depth > 8 * self.depth {
                (self.depth, self.done_at_depth) = (self.depth + 1, 0);
            }
        }
    }

    fn ready_to_transfer(&mut self, head: ReadyToTransfer) -> Result<(), LinkError> {
        self.window(head.expected_command_sn, head.command_sn_max)?;
        let sent = self.sent();
        let waiting = self.in_flight.get_mut(&head.task).ok_or(LinkError::Broken("it asks for data of no command"))?;
        let Direction::Out(outgoing) = &mut waiting.transfer else {
            return Err(LinkError::Broken("it asks for data of a command that has none"));
        };
        if head.transfer == NO_TAG {
            return Err(LinkError::Broken("it asks for data without a tag"));
        }
        let sequence = outgoing.asked(&head, sent, &self.parameters).map_err(LinkError::Broken)?;
        // A large command over a slow network takes its time, and is not without an answer.
        waiting.since = Instant::now();
        self.put_data(head.task, head.transfer, sequence);
        let end = self.queued;
        if let Some(InFlight { transfer: Direction::Out(outgoing), end: last, .. }) = self.in_flight.get_mut(&head.task)
        {
            outgoing.answers_until(end);
            *last = end;
        }
        Ok(())
    }

    fn nop_in(&mut self, head: NopIn) -> Result<(), LinkError> {
        if head.task != NO_TAG {
            // That it was heard is noted already.
            self.status(head.status_sn)?;
        }
        self.window(head.expected_command_sn, head.command_sn_max)?;
        if head.transfer != NO_TAG {
            self.answers += 1;
            if self.answers > ANSWERS_MAX {
                return Err(LinkError::Broken("it asks without end, and takes no answers"));
            }
            let answer = NopOut {
                flags: FINAL,
                lun: head.lun,
                task: NO_TAG,
                transfer: head.transfer,
                command_sn: self.command_sn,
                expected_status_sn: self.status_sn,
            };
            self.put_immediate(answer.encode(0));
        }
        Ok(())
    }

    fn message(&mut self, head: AsyncMessage, data: &[u8]) -> Result<(), LinkError> {
        self.status(head.status_sn)?;
        self.window(head.expected_command_sn, head.command_sn_max)?;
        match head.event {
            event::SCSI => {
                let sense = sense(data);
                if self.watch.see(sense)
                    && let Some(sense) = sense
                {
                    return Err(LinkError::Changed(sense));
                }
            }
            event::LOGOUT_REQUESTED => {
                let within = Duration::from_secs(head.parameters[2].into());
                tracing::info!(?within, "the target asks for a logout");
                self.leave(within.clamp(Duration::from_secs(1), LEAVE_MAX));
            }
            // A new login negotiates as well.
            event::NEGOTIATION_REQUESTED => self.leave(LEAVE_MAX),
            event::DROPS_CONNECTION | event::DROPS_SESSION => return Err(LinkError::Dropped),
            event => tracing::debug!(event, "a message of the target's that changes nothing"),
        }
        Ok(())
    }

    fn logged_out(&mut self, head: LogoutResponse) -> Result<(), LinkError> {
        self.status(head.status_sn)?;
        match self.leaving {
            Leaving::Asked { task, .. } if task == head.task => {
                self.leaving = Leaving::Left;
                Ok(())
            }
            _ => Err(LinkError::Broken("a logout that was not asked for")),
        }
    }
}

/// Sense data behind its length (11.4.7), if it can be read.
fn sense(data: &[u8]) -> Option<Received> {
    let (length, rest) = data.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Received::decode(&rest[..length.min(rest.len())])
}
