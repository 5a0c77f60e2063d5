//! The logical unit, its nexuses, and the way of a command through them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::attention::{Attention, Attentions};
use super::blocks::{self, Task};
use super::command::{Access, Kind};
use super::persistence::{self, Keep};
use super::reservations::{InitiatorPort, Reservations};
use super::sense::{Format, LOGICAL_UNIT_NOT_SUPPORTED, NO_SENSE, SOFTWARE_WRITE_PROTECTED, Sense, WRITE_PROTECTED};
use super::shape::{self, Command, Shape};
use super::{Answer, Refusal, inquiry, mode, provisioning, report, reserve};
use crate::disk::{Disk, DiskError, Pending};
use crate::format::codec::FormatError;

/// What is chosen about a unit. What names it must stay the same for the volume's life.
pub struct UnitSettings {
    /// Of the volume, for people.
    pub name: String,
    /// Unit Serial Number page; ASCII.
    pub serial: String,
    /// What designators are derived from.
    pub id: [u8; 16],
    /// The target's iSCSI name.
    pub target: String,
    /// Target ports; their relative identifiers are 1 and up.
    pub target_ports: u16,
    /// Where persistent reservations are kept; without it they cannot be registered to outlast a loss of power.
    pub keep: Option<Arc<dyn Keep>>,
}

impl UnitSettings {
    /// Of a unit that tests and fuzzing play with: nothing about it matters.
    pub(crate) fn example(target: &str) -> Self {
        Self {
            name: "disk0".into(),
            serial: "0123456789".into(),
            id: [7; 16],
            target: target.into(),
            target_ports: 1,
            keep: None,
        }
    }
}

/// Why a unit cannot be served: who may write to it is not known.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("load persistent reservations")]
    Io(#[from] io::Error),
    #[error("decode persistent reservations")]
    Format(#[from] FormatError),
}

/// One logical unit in front of a disk, shared by all its nexuses. Cheap to clone.
#[derive(Clone)]
pub struct Unit(Arc<Core>);

pub(super) struct Core {
    pub disk: Arc<dyn Disk>,
    pub settings: UnitSettings,
    block_length: u32,
    /// Bits of [`mode`].
    pub mode: AtomicU8,
    /// Bytes that initiators know of.
    capacity: AtomicU64,
    ports: Mutex<Vec<Arc<Port>>>,
    next_port: AtomicU64,
    pub reserved: Mutex<Reserved>,
    /// Anything is reserved by anybody; else there is nothing to ask. Changes with what it is about.
    restricted: AtomicBool,
    /// Held by the one PERSISTENT RESERVE OUT that is being done.
    pub reserving: tokio::sync::Mutex<()>,
}

/// Who may do what.
#[derive(Default)]
pub(super) struct Reserved {
    pub persistent: Reservations,
    /// Number of the port that did RESERVE(6).
    pub by_reserve: Option<u64>,
}

/// An initiator port that has logged in; twice the same while one session takes the place of another.
pub(super) struct Port {
    /// Unique for the unit's life.
    pub number: u64,
    pub initiator: InitiatorPort,
    pub attentions: Attentions,
    /// Held for reading by every change under way.
    pub changing: Arc<RwLock<()>>,
    /// How often PREEMPT AND ABORT ended its commands.
    pub aborts: AtomicU64,
}

/// An I_T nexus. Its drop is an I_T nexus loss: RESERVE(6) ends, persistent registrations stay.
pub struct Nexus(Seat);

/// Who asks, and what is asked.
#[derive(Clone)]
struct Seat {
    core: Arc<Core>,
    port: Arc<Port>,
}

impl Unit {
    /// Loads the persistent reservations; blocks for that.
    pub fn new(disk: Arc<dyn Disk>, settings: UnitSettings) -> Result<Self, KeepError> {
        let document = settings.keep.as_ref().map_or(Ok(None), |keep| keep.load())?;
        let persistent = document.map_or(Ok(Reservations::default()), |document| persistence::decode(&document))?;
        let restricted = persistent.held.is_some();
        let geometry = disk.geometry();
        Ok(Self(Arc::new(Core {
            block_length: shape::block_length(geometry),
            capacity: AtomicU64::new(geometry.size),
            disk,
            settings,
            mode: AtomicU8::new(0),
            ports: Mutex::default(),
            next_port: AtomicU64::new(0),
            reserved: Mutex::new(Reserved { persistent, by_reserve: None }),
            restricted: AtomicBool::new(restricted),
            reserving: tokio::sync::Mutex::default(),
        })))
    }

    /// An initiator port has logged in through a target port: from now on until the [`Nexus`] is dropped there is an
    /// I_T nexus.
    pub fn attach(&self, initiator: InitiatorPort) -> Nexus {
        let core = self.0.clone();
        let number = core.next_port.fetch_add(1, SeqCst);
        let port = Arc::new(Port {
            number,
            initiator,
            attentions: Attentions::default(),
            changing: Arc::default(),
            aborts: AtomicU64::new(0),
        });
        port.attentions.raise(Attention::PowerOn);
        core.ports.lock().push(port.clone());
        Nexus(Seat { core, port })
    }

    /// Of the disk: higher after each loss of its store.
    pub fn incarnation(&self) -> u64 {
        self.0.disk.incarnation()
    }

    /// As [`Disk::owe`].
    pub fn owe(&self, error: DiskError) {
        self.0.disk.owe(error);
    }
}

impl Core {
    pub fn shape(&self) -> Shape {
        Shape::new(self.disk.geometry(), self.block_length)
    }

    pub fn format(&self) -> Format {
        if self.mode.load(SeqCst) & mode::D_SENSE != 0 { Format::Descriptor } else { Format::Fixed }
    }

    /// All nexuses but one.
    pub fn raise(&self, attention: Attention, except: Option<&Port>) {
        for port in self.ports.lock().iter() {
            if except.is_none_or(|except| except.number != port.number) {
                port.attentions.raise(attention);
            }
        }
    }

    /// The nexuses of an initiator port.
    pub fn ports_of(&self, initiator: &InitiatorPort) -> Vec<Arc<Port>> {
        self.ports.lock().iter().filter(|port| port.initiator == *initiator).cloned().collect()
    }

    /// The one way to change who may do what.
    pub fn change_reserved<T>(&self, change: impl FnOnce(&mut Reserved) -> T) -> T {
        let mut reserved = self.reserved.lock();
        let changed = change(&mut reserved);
        let restricted = reserved.by_reserve.is_some() || reserved.persistent.held.is_some();
        self.restricted.store(restricted, SeqCst);
        changed
    }

    /// What reservations say to a command.
    fn allows(&self, port: &Port, access: Access) -> bool {
        if !self.restricted.load(SeqCst) {
            return true;
        }
        let reserved = self.reserved.lock();
        let persistent = &reserved.persistent;
        match (access, reserved.by_reserve) {
            (Access::Always | Access::Reserves, _) => true,
            (_, Some(holder)) => holder == port.number,
            (Access::Tells, None) => true,
            (Access::Reads, None) => persistent.allows(&port.initiator, false),
            (Access::Changes, None) => persistent.allows(&port.initiator, true),
        }
    }

    fn write_protection(&self, shape: &Shape) -> Option<Sense> {
        if shape.abilities.read_only {
            Some(WRITE_PROTECTED)
        } else if self.mode.load(SeqCst) & mode::SWP != 0 {
            Some(SOFTWARE_WRITE_PROTECTED)
        } else {
            None
        }
    }

    /// A disk may grow; then everybody is told.
    fn notice_capacity(&self) {
        let size = self.disk.geometry().size;
        if self.capacity.load(SeqCst) != size && self.capacity.swap(size, SeqCst) != size {
            self.raise(Attention::CapacityChanged, None);
        }
    }
}

impl Nexus {
    /// Takes a command in the order in which the initiator issued it: unit attentions, support, reservations and the
    /// fields of the CDB are decided here, before any of its data is fetched. What is refused is answered at once, and
    /// so is what another LUN than 0 is asked; `lun` is the transport's field of eight bytes, big-endian.
    pub fn admit(&self, lun: u64, cdb: &[u8]) -> Result<Command, Answer> {
        let Seat { core, .. } = &self.0;
        core.notice_capacity();
        let format = core.format();
        let shape = core.shape();
        if !is_lun_zero(lun)
            && let Some(answer) = absent(cdb, &shape, format)
        {
            return Err(answer);
        }
        self.0.judge(cdb, &shape).map_err(|refusal| Answer::refused(refusal, format))
    }

    /// Does it. `data` is the data-out: [`Command::data_out`] bytes, unless the initiator offers less. The answer is
    /// never an error: those of the disk become sense data.
    pub fn execute(&self, command: Command, data: Bytes) -> Pending<Answer> {
        if !command.row.changes() {
            return self.0.begin(command, data, None);
        }
        match self.0.port.changing.clone().try_read_owned() {
            Ok(changing) => self.0.begin(command, data, Some(changing)),
            // A preemption waits for what has begun, and what comes now waits for the preemption.
            Err(_) => {
                let seat = self.0.clone();
                Pending::later(async move {
                    let changing = seat.port.changing.clone().read_owned().await;
                    seat.begin(command, data, Some(changing)).await
                })
            }
        }
    }

    /// How a transport ends a command that it cannot have the unit do.
    pub fn refuse(&self, sense: Sense) -> Answer {
        Answer::check(sense, self.0.core.format())
    }

    /// CLEAR TASK SET: the other initiators are told that their commands are gone. To end them is the caller's.
    pub fn clear_task_set(&self) {
        let Seat { core, port } = &self.0;
        core.raise(Attention::CommandsCleared, Some(port));
    }

    /// LOGICAL UNIT RESET: RESERVE(6) ends, mode parameters are the default ones, and everybody is told, this nexus too.
    /// What is under way is the caller's.
    pub fn reset_unit(&self) {
        let Seat { core, .. } = &self.0;
        core.change_reserved(|reserved| reserved.by_reserve = None);
        core.mode.store(0, SeqCst);
        core.raise(Attention::Reset, None);
    }
}

impl Seat {
    fn judge(&self, cdb: &[u8], shape: &Shape) -> Result<Command, Refusal> {
        let row = Command::look_up(cdb, shape.abilities);
        // SPC-4, 5.14: these are done, and the attention stays, or is their answer.
        let passes = [Kind::Inquiry, Kind::ReportLuns, Kind::RequestSense];
        if !row.is_ok_and(|row| passes.contains(&row.kind))
            && let Some(attention) = self.port.attentions.take()
        {
            return Err(attention.into());
        }
        let row = row?;
        if !self.core.allows(&self.port, Command::access_of(row, cdb)) {
            return Err(Refusal::Conflict);
        }
        if row.changes()
            && let Some(protection) = self.core.write_protection(shape)
        {
            return Err(protection.into());
        }
        let mut command = Command::new(row, cdb, shape)?;
        command.aborts = self.port.aborts.load(SeqCst);
        Ok(command)
    }

    fn begin(&self, command: Command, data: Bytes, changing: Option<OwnedRwLockReadGuard<()>>) -> Pending<Answer> {
        let (core, format) = (&self.core, self.core.format());
        // What was reserved or protected since it was admitted counts too.
        let aborted = command.aborts != self.port.aborts.load(SeqCst);
        if aborted && command.row.changes() || !core.allows(&self.port, command.access()) {
            return Pending::ready(Ok(Answer::conflict()));
        }
        let shape = core.shape();
        if command.row.changes()
            && let Some(protection) = core.write_protection(&shape)
        {
            return Pending::ready(Ok(Answer::check(protection, format)));
        }
        let task = Task { disk: core.disk.clone(), shape, format, _changing: changing };
        match command.kind() {
            Kind::Read => blocks::read(task, &command),
            Kind::Write => blocks::write(task, &command, data),
            Kind::WriteAndVerify => blocks::write_and_verify(task, &command, data),
            Kind::Verify => blocks::verify(task, &command, data),
            Kind::CompareAndWrite => blocks::compare_and_write(task, &command, data),
            Kind::OrWrite => blocks::or_write(task, &command, data),
            Kind::SynchronizeCache => blocks::synchronize_cache(task),
            // To stop is to flush; nothing turns. NO_FLUSH and START need nothing.
            Kind::StartStopUnit if command.cdb.byte(4) & 0x05 == 0 => blocks::synchronize_cache(task),
            Kind::PreFetch => blocks::pre_fetch(task, &command),
            Kind::Unmap => provisioning::unmap(task, &command, data),
            Kind::WriteSame => provisioning::write_same(task, &command, data),
            Kind::GetLbaStatus => provisioning::get_lba_status(task, &command),
            Kind::PersistentReserveOut => reserve::persistent_out(core.clone(), self.port.clone(), &command, data),
            _ => Pending::ready(Ok(match self.tell(&command, &data, &task.shape) {
                Ok(bytes) => Answer::good(bytes),
                Err(refusal) => Answer::refused(refusal, format),
            })),
        }
    }

    /// What needs no disk.
    fn tell(&self, command: &Command, data: &Bytes, shape: &Shape) -> Result<Bytes, Refusal> {
        let (core, port, allocation) = (&*self.core, &*self.port, command.data_in() as usize);
        let mut bytes = match command.kind() {
            Kind::RequestSense => port.attentions.take().unwrap_or(NO_SENSE).formatted(command.sense_format()).encode(),
            Kind::Inquiry => inquiry::inquiry(&core.settings, shape, port.initiator.target_port, command)?,
            Kind::ModeSense => mode::sense(core, shape, command)?,
            Kind::ModeSelect => {
                if mode::select(core, shape, command, data)? {
                    core.raise(Attention::ModeParametersChanged, Some(port));
                }
                Bytes::new()
            }
            Kind::ReadCapacity10 => report::read_capacity_10(shape),
            Kind::ReadCapacity16 => report::read_capacity_16(shape),
            Kind::ReadDefectData10 => report::read_defect_data_10(command),
            Kind::ReadDefectData12 => report::read_defect_data_12(command),
            Kind::ReportLuns => report::luns(command)?,
            Kind::ReportTargetPortGroups => report::target_port_groups(core.settings.target_ports, command),
            Kind::ReportSupportedOperationCodes => report::supported_operation_codes(shape.abilities, command)?,
            Kind::ReportSupportedTaskManagementFunctions => report::supported_task_management_functions(command)?,
            Kind::PersistentReserveIn => reserve::persistent_in(core, command),
            Kind::Reserve => reserve::reserve(core, port)?,
            Kind::Release => reserve::release(core, port)?,
            // TEST UNIT READY; PREVENT ALLOW MEDIUM REMOVAL of what cannot be removed; START STOP UNIT that needs nothing; the
            // self-test, for the unit has no parts of its own that could fail.
            _ => Bytes::new(),
        };
        bytes.truncate(allocation);
        Ok(bytes)
    }
}

impl Drop for Nexus {
    fn drop(&mut self) {
        let Seat { core, port } = &self.0;
        let number = port.number;
        core.ports.lock().retain(|port| port.number != number);
        core.change_reserved(|reserved| reserved.by_reserve.take_if(|holder| *holder == number));
    }
}

/// Whether it is LUN 0, in any of the forms that say so (SAM-5, 4.7.7): peripheral device, flat space, logical unit and
/// extended flat space addressing.
pub fn is_lun_zero(lun: u64) -> bool {
    matches!(lun >> 48, 0 | 0x4000 | 0x8000 | 0xD200 | 0xE200) && lun << 16 == 0
}

/// What a LUN answers that is not there (SPC-4, 5.12); none to what every LUN knows.
fn absent(cdb: &[u8], shape: &Shape, format: Format) -> Option<Answer> {
    let row = Command::look_up(cdb, shape.abilities);
    let command = row.and_then(|row| Command::new(row, cdb, shape));
    Some(match command.map(|command| (command.kind(), command)) {
        Ok((Kind::ReportLuns, _)) => return None,
        Ok((Kind::Inquiry, command)) => match inquiry::absent(&command) {
            Ok(data) => Answer::good(data),
            Err(sense) => Answer::check(sense, format),
        },
        Ok((Kind::RequestSense, command)) => {
            let sense = LOGICAL_UNIT_NOT_SUPPORTED.formatted(command.sense_format()).encode();
            Answer::good(sense.slice(..sense.len().min(command.data_in() as usize)))
        }
        _ => Answer::check(LOGICAL_UNIT_NOT_SUPPORTED, format),
    })
}
