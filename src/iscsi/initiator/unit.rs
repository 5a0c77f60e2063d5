//! What a logical unit is: asked once at the beginning of a session, so that nothing is sent later that it does not know.
//! That it does not know a command is an answer; any other failure may pass, and says nothing.
//!
//! Vital product data is of SPC-4, 7.8, and SBC-3, 6.6; sizes are of READ CAPACITY (SBC-3, 5.15 and 5.16); what may be
//! written, and how, is of MODE SENSE (SPC-4, 7.5; SBC-3, 6.5).

use bytes::Bytes;

use super::cdb::{self, Cdb, Form};
use super::command::{Effect, Failure, Submit, execute, execute_exactly};
use super::link::{Residual, Transfer};
use super::url::Url;
use crate::disk::{Abilities, BlockSizes, Geometry};
use crate::scsi::{Key, Received};
use crate::units::{MIB, REQUEST_MAX, VOLUME_MAX};

/// Bytes of one command: what every unit takes that states no limit, and more than saves anything where one does.
const TRANSFER_UNSTATED: u32 = MIB as u32;
const TRANSFER_MAX: u32 = 4 * MIB as u32;
/// Bytes of one WRITE SAME: it may be as slow as writing.
const WRITE_SAME_MAX: u64 = 64 * MIB;
/// Bytes of a page that are asked for at first; some units fail where more is asked for than they have.
const PAGE_FIRST: u16 = 255;
const PAGE_MAX: u16 = 4096;
/// Bytes of the answer of READ CAPACITY(16).
const CAPACITY_16: u32 = 32;
/// LBA status descriptors of one answer.
pub const STATUS_DESCRIPTORS: u32 = 64;
pub const STATUS_LENGTH: u32 = 8 + 16 * STATUS_DESCRIPTORS;
/// Units of these two lengths: others hold no whole sectors (520 and 528 bytes), or are too large for what is in front.
const BLOCK_LENGTHS: [u32; 2] = [512, 4096];
/// NAA, EUI-64, T10 vendor ID (SPC-4, 7.8.6).
const NAA: u8 = 3;
const EUI64: u8 = 2;
const T10: u8 = 1;
/// SUPPORT of a command (SPC-4, table 273); what else there is, is the vendor's own way.
const NOT_KNOWN: u8 = 0;
const NOT_SUPPORTED: u8 = 1;
const STANDARD: u8 = 3;
const CACHING_PAGE: u8 = 0x08;
const ALL_PAGES: u8 = 0x3F;

/// Why a logical unit is not used.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    #[error(
        "the target has no LUN {0}; a LUN that it has, and shows to this initiator, stands behind its name in the URL"
    )]
    NoSuchLun(u16),
    #[error(
        "LUN {lun} is no disk (peripheral device type {kind:#04x}); only direct access block devices are supported"
    )]
    NoDisk { lun: u16, kind: u8 },
    #[error("LUN {0} is a removable medium, which may become another at any time; use a fixed disk")]
    Removable(u16),
    #[error(
        "the unit has logical blocks of {0} bytes; only 512 and 4096 are supported: format it, or export it, with those"
    )]
    BlockLength(u32),
    #[error("the unit has a size of {0} blocks, which cannot be served")]
    Size(u64),
    #[error("the unit answers {0} with what cannot be")]
    Malformed(&'static str),
    #[error("{command} failed: {failure}")]
    Failed { command: &'static str, failure: Failure },
    #[error("the unit says that it may be another (sense key {:#x}, code {:#06x}) while it is asked what it is", .0.key, .0.code)]
    Changed(Received),
    #[error("the session ended while the unit was asked what it is")]
    Left,
}

/// How UNMAP may be used, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmaps {
    /// Of one command.
    pub count_max: u32,
    pub granularity: u32,
    /// The first border of those that are as far apart.
    pub alignment: u32,
}

/// How WRITE SAME(16) may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritesSame {
    /// Blocks of one command.
    pub count_max: u32,
    /// It may unmap, and what it unmaps reads as zeroes.
    pub unmaps: bool,
}

/// Whether there is SYNCHRONIZE CACHE. It is never tried: a unit tells once what it could not write, and must tell it to
/// a client's flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronizes {
    No,
    By(Form),
    /// The unit does not say.
    Perhaps,
}

/// What is known of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Stays the same for the unit's life.
    pub name: String,
    pub block_length: u32,
    pub blocks: u64,
    /// Bytes, a power of two.
    pub preferred: u32,
    /// Blocks of one read or write.
    pub transfer_max: u32,
    /// Of reads and writes.
    pub form: Form,
    pub synchronize: Synchronizes,
    pub unmap: Option<Unmaps>,
    pub write_same: Option<WritesSame>,
    /// GET LBA STATUS tells more than that all is mapped.
    pub lba_status: bool,
    /// LBPRZ: what was unmapped reads as zeroes.
    pub unmapped_is_zero: bool,
    pub read_only: bool,
    pub fua: bool,
    pub rotational: bool,
}

impl Facts {
    pub fn geometry(&self) -> Geometry {
        let writes = !self.read_only;
        let block = BlockSizes {
            minimum: self.block_length,
            preferred: self.preferred,
            // Whatever one command may transfer: larger ones are split.
            maximum: REQUEST_MAX,
        };
        let abilities = Abilities {
            read_only: self.read_only,
            rotational: self.rotational,
            flush: self.synchronize != Synchronizes::No,
            fua: writes && self.fua,
            trim: writes && self.unmap.is_some(),
            // LBPRZ speaks only of blocks that the unit did unmap, and it may leave any as they are (SBC-3, 4.7.3.2).
            trim_reads_zero: false,
            write_zeroes: writes && self.write_same.is_some(),
            fast_zeroes: false,
            cache: false,
            extents: self.lba_status,
            // There is one session, whoever asks.
            multi_conn: true,
        };
        Geometry { size: self.blocks * u64::from(self.block_length), block, abilities }
    }
}

struct Asking<'a, T> {
    to: &'a T,
}

impl<T: Submit> Asking<'_, T> {
    async fn get(&self, cdb: Cdb, length: u32) -> Result<Bytes, Failure> {
        let completion = execute(self.to, cdb, || Transfer::In(length), Effect::Repeatable).await?;
        let mut data = completion.data;
        // What the target did not have is not there, whatever it sent instead.
        if let Residual::Under(missing) = completion.residual {
            data.truncate(length.saturating_sub(missing) as usize);
        }
        Ok(data)
    }

    /// A page of vital product data without its header; none if the unit does not have it.
    async fn page(&self, page: u8) -> Result<Option<Bytes>, UnitError> {
        let mut length = PAGE_FIRST;
        loop {
            let data = match self.get(cdb::inquiry(Some(page), length), length.into()).await {
                Ok(data) => data,
                Err(failure) if failure.is_unsupported() => return Ok(None),
                Err(failure) => return Err(UnitError::Failed { command: "INQUIRY of a page", failure }),
            };
            let Some(&[_, found, high, low]) = data.first_chunk() else {
                return Err(UnitError::Malformed("INQUIRY of a page"));
            };
            if found != page {
                return Ok(None);
            }
            let whole = u16::from_be_bytes([high, low]).saturating_add(4).min(PAGE_MAX);
            if whole > length {
                length = whole;
                continue;
            }
            return Ok(Some(data.slice(4..data.len().min(whole.into()))));
        }
    }

    async fn does(&self, cdb: Cdb) -> Result<(), Failure> {
        execute(self.to, cdb, || Transfer::None, Effect::Repeatable).await.map(drop)
    }
}

/// Asks the unit what it is.
pub(super) async fn inspect(to: &impl Submit, url: &Url) -> Result<Facts, UnitError> {
    let asking = Asking { to };
    let failed = |command| move |failure| UnitError::Failed { command, failure };
    let standard = asking.get(cdb::inquiry(None, 36), 36).await.map_err(failed("INQUIRY"))?;
    let Some(&[peripheral, medium, ..]) = standard.first_chunk::<8>() else {
        return Err(UnitError::Malformed("INQUIRY"));
    };
    // PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE; RMB.
    match (peripheral >> 5, peripheral & 0x1F) {
        (0, 0) => {}
        (0, kind) => return Err(UnitError::NoDisk { lun: url.lun, kind }),
        _ => return Err(UnitError::NoSuchLun(url.lun)),
    }
    if medium & 0x80 != 0 {
        return Err(UnitError::Removable(url.lun));
    }
    asking.does(cdb::test_unit_ready()).await.map_err(failed("TEST UNIT READY"))?;

    let listed = asking.page(0x00).await?.unwrap_or_default();
    let has = |page: u8| listed.contains(&page);
    let serial = if has(0x80) { asking.page(0x80).await? } else { None }.unwrap_or_default();
    let designators = if has(0x83) { asking.page(0x83).await? } else { None }.unwrap_or_default();
    let limits = if has(0xB0) { asking.page(0xB0).await? } else { None }.unwrap_or_default();
    let characteristics = if has(0xB1) { asking.page(0xB1).await? } else { None }.unwrap_or_default();
    let provisioning = if has(0xB2) { asking.page(0xB2).await? } else { None }.unwrap_or_default();

    let capacity = capacity(&asking).await?;
    let Capacity { blocks, block_length, .. } = capacity;
    if !BLOCK_LENGTHS.contains(&block_length) {
        return Err(UnitError::BlockLength(block_length));
    }
    if blocks == 0 || blocks > VOLUME_MAX / u64::from(block_length) {
        return Err(UnitError::Size(blocks));
    }
    let mode = mode(&asking).await?;
    let limits = Limits::decode(&limits);
    let form = match read_first(&asking, Form::Sixteen, block_length).await {
        Err(failure) if failure.is_unsupported() => Form::Ten,
        // That its first block cannot be read does not keep the others from being.
        Err(failure) if !failure.is(Key::MediumError) => return Err(failed("READ")(failure)),
        _ => Form::Sixteen,
    };
    if form == Form::Ten && blocks > 1 << 32 {
        return Err(UnitError::Size(blocks));
    }
    let stated = limits.transfer_max.saturating_mul(block_length);
    let transfer = if stated == 0 { TRANSFER_UNSTATED } else { stated.min(TRANSFER_MAX) };
    // LBPU, LBPWS (SBC-3, 6.6.4).
    let flags = provisioning.get(1).copied().unwrap_or(0);
    let provisioned = capacity.provisioned;
    let unmapped_is_zero = provisioned && capacity.unmapped_is_zero;
    let unmaps = provisioned && flags & 0x80 != 0 && limits.unmap_count_max > 0 && limits.unmap_descriptors_max > 0;
    let unmap = unmaps.then(|| Unmaps {
        count_max: limits.unmap_count_max,
        granularity: limits.unmap_granularity.max(1),
        alignment: limits.unmap_alignment,
    });
    let write_same = writes_same(&asking, flags & 0x40 != 0, &limits).await?.then(|| {
        let most = (WRITE_SAME_MAX / u64::from(block_length)) as u32;
        let stated = u32::try_from(limits.write_same_max).unwrap_or(u32::MAX);
        let unmaps = flags & 0x40 != 0 && unmapped_is_zero;
        WritesSame { count_max: if stated == 0 { most } else { stated.min(most) }, unmaps }
    });
    let lba_status = provisioned && {
        match asking.get(cdb::get_lba_status(0, STATUS_LENGTH), STATUS_LENGTH).await {
            Ok(data) => LbaStatus::first(&data, 0).is_some(),
            Err(failure) if failure.is_unsupported() => false,
            Err(failure) => return Err(failed("GET LBA STATUS")(failure)),
        }
    };
    let physical = block_length.checked_shl(capacity.physical_exponent.into()).unwrap_or(block_length);
    let preferred = physical.max(limits.granularity.saturating_mul(block_length)).max(4096);
    let preferred = preferred.min(transfer.max(4096));
    Ok(Facts {
        name: name(&designators, &serial, &standard, &url.target)
            .map_or_else(|| url.to_string(), |name| format!("iscsi:{name}")),
        block_length,
        blocks,
        preferred: 1 << preferred.ilog2(),
        transfer_max: (transfer / block_length).clamp(1, form.count_max()),
        form,
        synchronize: synchronizes(&asking).await?,
        unmap,
        write_same,
        lba_status,
        unmapped_is_zero,
        read_only: mode.read_only,
        fua: mode.fua,
        // MEDIUM ROTATION RATE, of what does rotate (SBC-3, 6.6.2).
        rotational: be16(&characteristics, 0) > 0x0400,
    })
}

async fn read_first(asking: &Asking<'_, impl Submit>, form: Form, block_length: u32) -> Result<(), Failure> {
    let cdb = cdb::read(form, 0, 1);
    let transfer = || Transfer::In(block_length);
    execute_exactly(asking.to, cdb, transfer, Effect::Repeatable, block_length).await.map(drop)
}

/// SUPPORT of an operation code (SPC-4, table 273); none where the unit does not say.
async fn support(asking: &Asking<'_, impl Submit>, operation_code: u8) -> Result<Option<u8>, UnitError> {
    match asking.get(cdb::report_supported_operation_code(operation_code, 64), 64).await {
        Ok(data) => Ok(data.get(1).map(|byte| byte & 0x07).filter(|support| *support != NOT_KNOWN)),
        Err(failure) if failure.is_unsupported() => Ok(None),
        Err(failure) => Err(UnitError::Failed { command: "REPORT SUPPORTED OPERATION CODES", failure }),
    }
}

async fn synchronizes(asking: &Asking<'_, impl Submit>) -> Result<Synchronizes, UnitError> {
    for (form, operation_code) in [(Form::Ten, cdb::SYNCHRONIZE_CACHE_10), (Form::Sixteen, cdb::SYNCHRONIZE_CACHE_16)] {
        match support(asking, operation_code).await? {
            Some(STANDARD) => return Ok(Synchronizes::By(form)),
            Some(NOT_SUPPORTED) => {}
            _ => return Ok(Synchronizes::Perhaps),
        }
    }
    Ok(Synchronizes::No)
}

/// Whether WRITE SAME(16) is there, which cannot be found out by trying.
async fn writes_same(asking: &Asking<'_, impl Submit>, provisions: bool, limits: &Limits) -> Result<bool, UnitError> {
    let support = support(asking, cdb::WRITE_SAME_16).await?;
    Ok(support.map_or(provisions || limits.write_same_max > 0, |support| support == STANDARD))
}

struct Capacity {
    blocks: u64,
    block_length: u32,
    physical_exponent: u8,
    /// LBPME.
    provisioned: bool,
    /// LBPRZ.
    unmapped_is_zero: bool,
}

async fn capacity(asking: &Asking<'_, impl Submit>) -> Result<Capacity, UnitError> {
    match asking.get(cdb::read_capacity_16(CAPACITY_16), CAPACITY_16).await {
        Ok(data) if data.len() >= 12 => {
            let at = |index: usize| data.get(index).copied().unwrap_or(0);
            // A last address of all ones would be one block more than can be counted.
            let blocks = be64(&data, 0).checked_add(1).ok_or(UnitError::Size(u64::MAX))?;
            return Ok(Capacity {
                blocks,
                block_length: be32(&data, 8),
                physical_exponent: at(13) & 0x0F,
                provisioned: at(14) & 0x80 != 0,
                unmapped_is_zero: at(14) & 0x40 != 0,
            });
        }
        Ok(_) => return Err(UnitError::Malformed("READ CAPACITY(16)")),
        Err(failure) if failure.is_unsupported() => {}
        Err(failure) => return Err(UnitError::Failed { command: "READ CAPACITY(16)", failure }),
    }
    let data = asking.get(cdb::read_capacity_10(), 8).await;
    let data = data.map_err(|failure| UnitError::Failed { command: "READ CAPACITY(10)", failure })?;
    if data.len() < 8 {
        return Err(UnitError::Malformed("READ CAPACITY(10)"));
    }
    // A last address of all ones is that of a unit that has more than can be said here (SBC-3, 5.15.2).
    let blocks = be32(&data, 0).checked_add(1).ok_or(UnitError::Size(1 << 32))?.into();
    let block_length = be32(&data, 4);
    Ok(Capacity { blocks, block_length, physical_exponent: 0, provisioned: false, unmapped_is_zero: false })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mode {
    read_only: bool,
    fua: bool,
}

impl Mode {
    /// The DEVICE-SPECIFIC PARAMETER: WP and DPOFUA.
    fn decode(parameter: u8) -> Self {
        Self { read_only: parameter & 0x80 != 0, fua: parameter & 0x10 != 0 }
    }
}

/// Of a unit that has no mode parameters: it may be written to, as long as it does not say no.
async fn mode(asking: &Asking<'_, impl Submit>) -> Result<Mode, UnitError> {
    for page in [CACHING_PAGE, ALL_PAGES] {
        for (cdb, header, parameter) in [(cdb::mode_sense_6(page, 192), 4, 2), (cdb::mode_sense_10(page, 192), 8, 3)] {
            match asking.get(cdb, 192).await {
                Ok(data) if data.len() >= header => return Ok(Mode::decode(data[parameter])),
                Ok(_) => {}
                Err(failure) if failure.is_unsupported() => {}
                Err(failure) => return Err(UnitError::Failed { command: "MODE SENSE", failure }),
            }
        }
    }
    Ok(Mode::default())
}

/// The Block Limits page (SBC-3, 6.6.3), in blocks; 0 where nothing is said.
#[derive(Debug, Default)]
struct Limits {
    granularity: u32,
    transfer_max: u32,
    unmap_count_max: u32,
    unmap_descriptors_max: u32,
    unmap_granularity: u32,
    unmap_alignment: u32,
    write_same_max: u64,
}

impl Limits {
    fn decode(page: &[u8]) -> Self {
        // Offsets are those of the page, which has a header of four bytes.
        let alignment = be32(page, 32 - 4);
        Self {
            granularity: be16(page, 6 - 4).into(),
            transfer_max: be32(page, 8 - 4),
            unmap_count_max: be32(page, 20 - 4),
            unmap_descriptors_max: be32(page, 24 - 4),
            unmap_granularity: be32(page, 28 - 4),
            // UGAVALID.
            unmap_alignment: if alignment >> 31 != 0 { alignment & 0x7FFF_FFFF } else { 0 },
            write_same_max: be64(page, 36 - 4),
        }
    }
}

/// A run of blocks (SBC-3, 5.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaStatus {
    pub count: u32,
    pub status: u8,
}

pub const DEALLOCATED: u8 = 1;
pub const ANCHORED: u8 = 2;

impl LbaStatus {
    /// The runs of an answer from `lba` on, as far as they follow each other.
    pub fn runs(data: &[u8], lba: u64) -> impl Iterator<Item = Self> {
        // PARAMETER DATA LENGTH counts what follows it.
        let length = (be32(data, 0) as usize).saturating_add(4).min(data.len());
        let mut next = lba;
        data.get(8..length).unwrap_or_default().chunks_exact(16).map_while(move |descriptor| {
            let (first, count, status) = (be64(descriptor, 0), be32(descriptor, 8), descriptor[12] & 0x0F);
            // The first may begin before what was asked for.
            let end = first.checked_add(count.into()).filter(|end| first <= next && *end > next)?;
            let count = u32::try_from(end - next).ok()?;
            next = end;
            Some(Self { count, status })
        })
    }

    fn first(data: &[u8], lba: u64) -> Option<Self> {
        Self::runs(data, lba).next()
    }
}

/// A name that the unit was given for life, of the best kind there is. What is assigned locally is often no more than
/// numbers that every array begins to count at, and names the unit only together with its target.
fn name(designators: &[u8], serial: &[u8], standard: &[u8], target: &str) -> Option<String> {
    #[derive(PartialEq, PartialOrd)]
    enum Rank {
        T10,
        Local,
        Eui64,
        Naa,
    }
    let mut best: Option<(Rank, String)> = None;
    let mut rest = designators;
    while let Some((&[_, kind, _, length], behind)) = rest.split_first_chunk()
        && let Some((value, behind)) = behind.split_at_checked(length.into())
    {
        rest = behind;
        // ASSOCIATION: of the logical unit.
        if kind & 0x30 != 0 || value.is_empty() {
            continue;
        }
        let kind = kind & 0x0F;
        let name = match kind {
            NAA if is_local(value) => format!("{target}/naa.{}", hexadecimal(value)),
            NAA => format!("naa.{}", hexadecimal(value)),
            EUI64 => format!("eui.{}", hexadecimal(value)),
            T10 => match printable(value) {
                name if name.is_empty() => continue,
                name => format!("t10.{name}"),
            },
            _ => continue,
        };
        let rank = match kind {
            NAA if is_local(value) => Rank::Local,
            NAA => Rank::Naa,
            EUI64 => Rank::Eui64,
            _ => Rank::T10,
        };
        if best.as_ref().is_none_or(|(other, _)| *other < rank) {
            best = Some((rank, name));
        }
    }
    best.map(|(_, name)| name).or_else(|| {
        let vendor = printable(standard.get(8..16).unwrap_or_default());
        let serial = printable(serial);
        (!serial.is_empty()).then(|| format!("t10.{vendor}.{serial}"))
    })
}

/// Whether an NAA designator is unique at its target alone: it is assigned locally (3h), or has no company's number, which
/// would make it unique (SPC-4, 7.8.6.6). tgt counts so, from the same number on at every target.
fn is_local(naa: &[u8]) -> bool {
    match naa[0] >> 4 {
        3 => true,
        // IEEE extended: behind 12 bits of the vendor's.
        2 => be32(naa, 1) & 0x00FF_FFFF == 0,
        // IEEE registered, and extended.
        5 | 6 => be32(naa, 0) & 0x0FFF_FFF0 == 0,
        _ => false,
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text of a unit, as it may be shown.
fn printable(bytes: &[u8]) -> String {
    let text: String = bytes.iter().filter(|byte| (0x20..0x7F).contains(*byte)).map(|byte| char::from(*byte)).collect();
    text.split_whitespace().collect::<Vec<_>>().join("_")
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    be64_of(bytes, at, 2) as u16
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    be64_of(bytes, at, 4) as u32
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    be64_of(bytes, at, 8)
}

/// A big-endian number; what is not there is zero, as where a page is shorter than today's.
fn be64_of(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes.get(at..at + length).unwrap_or_default().iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_named_by_the_best_designator_of_its_own() {
        let t10 = [&[2, 1, 0, 12][..], b"VENDOR  disk"].concat();
        let naa = [&[1, 3, 0, 8][..], &[0x60, 1, 2, 3, 4, 5, 6, 7]].concat();
        let port = [&[1, 0x93, 0, 8][..], &[0x50; 8]].concat();
        let standard = [&[0; 8][..], b"VENDOR  PRODUCT         0001"].concat();
        let local = [&[1, 3, 0, 8][..], &[0x30, 0, 0, 1, 0, 0, 0, 1]].concat();
        let eui = [&[1, 2, 0, 8][..], &[0x60, 1, 2, 3, 4, 5, 6, 8]].concat();
        let of = |parts: &[&[u8]]| name(&parts.concat(), b" serial 1 ", &standard, "iqn.t").unwrap();
        assert_eq!(of(&[&t10, &local]), "iqn.t/naa.3000000100000001", "another array has one of the same number");
        assert_eq!(of(&[&local, &naa]), "naa.6001020304050607");
        assert_eq!(of(&[&eui, &local]), "eui.6001020304050608");
        assert_eq!(of(&[&t10, &port, &naa]), "naa.6001020304050607");
        // Without a company's number: as tgt has them, and in the other two forms.
        for (local, expected) in [
            (&[0x60, 0, 0, 0, 0, 0, 0, 0, 0x0e, 0, 0, 0, 0, 1, 0, 1][..], "60000000000000000e00000000010001"),
            (&[0x50, 0, 0, 0, 0x0e, 1, 0, 1], "500000000e010001"),
            (&[0x2e, 0x0e, 0, 0, 0, 1, 0, 1], "2e0e000000010001"),
        ] {
            let local = [&[1, 3, 0, local.len() as u8], local].concat();
            assert_eq!(of(&[&t10, &local]), format!("iqn.t/naa.{expected}"));
            assert_eq!(of(&[&local, &eui]), "eui.6001020304050608");
        }
        for company in [[0x60, 0, 0, 0x10, 0, 0, 0, 0], [0x50, 0, 0, 0x10, 0, 0, 0, 0], [0x20, 0, 0, 0, 1, 0, 0, 0]] {
            let ieee = [&[1, 3, 0, 8][..], &company].concat();
            assert_eq!(of(&[&ieee]), format!("naa.{}", hexadecimal(&company)));
        }
        assert_eq!(of(&[&port, &t10]), "t10.VENDOR_disk");
        assert_eq!(of(&[&port]), "t10.VENDOR.serial_1");
        assert_eq!(of(&[&naa[..8]]), "t10.VENDOR.serial_1", "one that is cut off names nothing");
        assert_eq!(name(&[], &[], &standard, "iqn.t"), None);
    }

    #[test]
    fn the_runs_of_an_answer_are_those_that_follow_each_other() {
        let run = |lba: u64, count: u32, status: u8| {
            [&lba.to_be_bytes()[..], &count.to_be_bytes(), &[status, 0, 0, 0]].concat()
        };
        let answer = |runs: &[Vec<u8>]| {
            let runs = runs.concat();
            [&(runs.len() as u32 + 4).to_be_bytes()[..], &[0; 4], &runs].concat()
        };
        let found =
            |data: &[u8], lba| LbaStatus::runs(data, lba).map(|run| (run.count, run.status)).collect::<Vec<_>>();
        assert_eq!(found(&answer(&[run(0, 10, 0), run(10, 5, 1)]), 4), [(6, 0), (5, 1)]);
        assert_eq!(found(&answer(&[run(0, 10, 0), run(11, 5, 1)]), 0), [(10, 0)]);
        assert_eq!(found(&answer(&[run(5, 10, 0)]), 4), []);
        assert_eq!(found(&answer(&[run(0, 4, 0)]), 4), []);
        assert_eq!(found(&answer(&[run(u64::MAX, 4, 0)]), u64::MAX), []);
        assert_eq!(found(&answer(&[run(0, 10, 0), run(10, 5, 1)])[..30], 0), [(10, 0)]);
        assert_eq!(found(&[], 0), []);
    }
}
