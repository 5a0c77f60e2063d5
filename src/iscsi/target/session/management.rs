//! What ends tasks: task management, and the logout (section 11.5, 11.6, 11.14 and 11.15).
//!
//! It is answered when what it ended can touch the medium no more. What runs on the disk cannot be taken back, so that it
//! is waited for; what was not begun never is.

use std::collections::HashSet;
use std::task::Context;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{End, Issued, MANAGEMENTS_MAX, Management, Reply, Session, StatusSn};
use crate::iscsi::pdu::{
    FINAL, LogoutRequest, LogoutResponse, TaskManagementRequest, TaskManagementResponse, logout, task_management,
};
use crate::scsi::is_lun_zero;

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    pub(super) fn manage(&mut self, head: TaskManagementRequest) {
        let function = head.function & !FINAL;
        if self.managements.len() >= MANAGEMENTS_MAX {
            return self.managed(head.task, task_management::REJECTED);
        }
        let Some((target, nexus)) = &self.unit else { return self.managed(head.task, task_management::NOT_SUPPORTED) };
        let about_lun = function != task_management::TARGET_WARM_RESET;
        if about_lun && !is_lun_zero(head.lun) {
            return self.managed(head.task, task_management::NO_SUCH_LUN);
        }
        let (ended, all_ended) = match function {
            task_management::ABORT_TASK => match self.abort(head.referenced) {
                Some(ended) => (ended, None),
                None => return self.managed(head.task, task_management::NO_SUCH_TASK),
            },
            task_management::ABORT_TASK_SET => (self.abort_all(), None),
            task_management::CLEAR_TASK_SET
            | task_management::LOGICAL_UNIT_RESET
            | task_management::TARGET_WARM_RESET => {
                match function {
                    task_management::CLEAR_TASK_SET => nexus.clear_task_set(),
                    _ => nexus.reset_unit(),
                }
                let all_ended = target.epochs.end();
                self.end_old_tasks();
                (HashSet::new(), Some(Box::pin(all_ended) as _))
            }
            task_management::TASK_REASSIGN => {
                return self.managed(head.task, task_management::REASSIGNMENT_NOT_SUPPORTED);
            }
            _ => return self.managed(head.task, task_management::NOT_SUPPORTED),
        };
        self.managements.push(Management { reply: Reply::Managed(head.task), ended, all_ended });
    }

    /// Ends a task, and tells what of it is still to be waited for; none if there is no such task.
    pub(super) fn abort(&mut self, task: u32) -> Option<HashSet<u32>> {
        if let Some(begun) = self.tags.get_mut(&task) {
            begun.aborted = true;
            return Some([task].into());
        }
        let found = self.held.remove(&task).is_some() | self.stop_receiving(task).is_some();
        found.then(HashSet::new)
    }

    /// The same of all tasks of the session.
    pub(super) fn abort_all(&mut self) -> HashSet<u32> {
        let all: Vec<u32> = self.tags.keys().chain(self.receiving.keys()).chain(self.held.keys()).copied().collect();
        all.into_iter().filter_map(|task| self.abort(task)).flatten().collect()
    }

    /// After a reset: what was not begun never is, and what runs is answered to nobody.
    pub(super) fn end_old_tasks(&mut self) {
        let Some((target, _)) = &self.unit else { return };
        let is_over = |issued: &Issued| target.epochs.is_over(&issued.epoch);
        let receiving = self.receiving.values().map(|receiving| &receiving.issued);
        let held = self.held.values().map(|(issued, ..)| issued);
        let over: Vec<u32> = receiving.chain(held).filter(|issued| is_over(issued)).map(|issued| issued.task).collect();
        over.into_iter().for_each(|task| _ = self.abort(task));
    }

    pub(super) fn poll_managements(&mut self, cx: &mut Context<'_>) {
        let mut at = 0;
        while at < self.managements.len() {
            let management = &mut self.managements[at];
            if let Some(all_ended) = &mut management.all_ended
                && all_ended.as_mut().poll(cx).is_ready()
            {
                management.all_ended = None;
            }
            if management.ended.is_empty() && management.all_ended.is_none() {
                match self.managements.remove(at).reply {
                    Reply::Managed(task) => self.managed(task, task_management::COMPLETE),
                    Reply::LoggedOut(task) => {
                        self.logged_out(task, logout::CLOSED);
                        return self.finish(End::LoggedOut);
                    }
                }
            } else {
                at += 1;
            }
        }
    }

    pub(super) fn managed(&mut self, task: u32, response: u8) {
        let response = TaskManagementResponse { flags: FINAL, response, task, ..TaskManagementResponse::default() };
        self.put(response.encode(0), Bytes::new(), StatusSn::Own);
    }

    /// Whether a logout was asked for that is not answered yet.
    pub(super) fn is_leaving(&self) -> bool {
        self.managements.iter().any(|management| matches!(management.reply, Reply::LoggedOut(_)))
    }

    /// Tasks end before the answer: whoever has it may log in anew and go on (11.14).
    pub(super) fn log_out(&mut self, head: LogoutRequest) {
        match head.reason & !FINAL {
            logout::CLOSE_SESSION => {}
            logout::CLOSE_CONNECTION if head.connection == self.connection => {}
            logout::CLOSE_CONNECTION => return self.logged_out(head.task, logout::NO_SUCH_CONNECTION),
            _ => return self.logged_out(head.task, logout::RECOVERY_NOT_SUPPORTED),
        }
        let ended = self.abort_all();
        self.managements.push(Management { reply: Reply::LoggedOut(head.task), ended, all_ended: None });
    }

    pub(super) fn logged_out(&mut self, task: u32, response: u8) {
        let answer = LogoutResponse { flags: FINAL, response, task, ..LogoutResponse::default() };
        self.put(answer.encode(0), Bytes::new(), StatusSn::Own);
    }
}
