//! The bytes of NBD: numbers, and fixed-size messages to and from them. No I/O and no policy; all integers are big
//! endian. Names are proto.md's, without their prefixes.

use std::ops::{BitOr, BitOrAssign};

use crate::disk::{Abilities, DiskError, Errno};

/// Of a URI or address that names none (registered with IANA).
pub const DEFAULT_PORT: u16 = 10809;

/// "NBDMAGIC"
pub const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": a newstyle server's second magic, and every option's.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// An oldstyle server's second magic.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of the longest name, description or message (proto.md, "Values").
pub const STRING_MAX: usize = 4096;
/// Zeroes after the answer to `EXPORT_NAME`, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING: usize = 124;
/// The one metadata context that we know.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Flags of the server's greeting and, by the same numbers, of the client's answer.
pub mod handshake {
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What a client may ask before transmission.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of a server's replies to options.
pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// Set in all that follow.
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_PLATFORM: u32 = ERROR | 4;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information in a reply of type `INFO`.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Types of requests.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;

    pub const FLAG_FUA: u16 = 1 << 0;
    pub const FLAG_NO_HOLE: u16 = 1 << 1;
    pub const FLAG_DF: u16 = 1 << 2;
    pub const FLAG_REQ_ONE: u16 = 1 << 3;
    pub const FLAG_FAST_ZERO: u16 = 1 << 4;
}

/// Types of the chunks of a structured reply, and their flag.
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in the type of every chunk that tells an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERROR_BIT | 1;

    pub const FLAG_DONE: u16 = 1 << 0;
}

/// Flags of a run in a `BLOCK_STATUS` chunk of `base:allocation`.
pub mod state {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// What an export can do (proto.md, "Transmission flags").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportFlags(pub u16);

impl ExportFlags {
    pub const HAS_FLAGS: Self = Self(1 << 0);
    pub const READ_ONLY: Self = Self(1 << 1);
    pub const SEND_FLUSH: Self = Self(1 << 2);
    pub const SEND_FUA: Self = Self(1 << 3);
    pub const ROTATIONAL: Self = Self(1 << 4);
    pub const SEND_TRIM: Self = Self(1 << 5);
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    pub const SEND_DF: Self = Self(1 << 7);
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    pub const SEND_CACHE: Self = Self(1 << 10);
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);

    pub fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    /// What a disk can do, in NBD's words. Of a disk that is only read, nothing that changes it is offered.
    pub fn of(abilities: Abilities, structured_replies: bool) -> Self {
        let mut flags = Self::HAS_FLAGS;
        let mut set = |condition: bool, flag: Self| {
            if condition {
                flags |= flag;
            }
        };
        let writable = !abilities.read_only;
        set(abilities.read_only, Self::READ_ONLY);
        set(abilities.flush, Self::SEND_FLUSH);
        set(abilities.fua && writable, Self::SEND_FUA);
        set(abilities.rotational, Self::ROTATIONAL);
        set(abilities.trim && writable, Self::SEND_TRIM);
        set(abilities.write_zeroes && writable, Self::SEND_WRITE_ZEROES);
        set(abilities.write_zeroes && abilities.fast_zeroes && writable, Self::SEND_FAST_ZERO);
        set(abilities.multi_conn, Self::CAN_MULTI_CONN);
        set(abilities.cache, Self::SEND_CACHE);
        set(structured_replies, Self::SEND_DF);
        flags
    }

    /// What a server offers, as a disk's abilities. Flags without `HAS_FLAGS` mean nothing.
    pub fn abilities(self, extents: bool) -> Abilities {
        if !self.has(Self::HAS_FLAGS) {
            return Abilities { extents, ..Abilities::default() };
        }
        Abilities {
            read_only: self.has(Self::READ_ONLY),
            rotational: self.has(Self::ROTATIONAL),
            flush: self.has(Self::SEND_FLUSH),
            fua: self.has(Self::SEND_FUA),
            trim: self.has(Self::SEND_TRIM),
            trim_reads_zero: false,
            write_zeroes: self.has(Self::SEND_WRITE_ZEROES),
            fast_zeroes: self.has(Self::SEND_WRITE_ZEROES) && self.has(Self::SEND_FAST_ZERO),
            cache: self.has(Self::SEND_CACHE),
            extents,
            multi_conn: self.has(Self::CAN_MULTI_CONN),
        }
    }
}

impl BitOr for ExportFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ExportFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// An error number of the protocol (proto.md, "Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdError(pub u32);

impl NbdError {
    pub const EPERM: Self = Self(1);
    pub const EIO: Self = Self(5);
    pub const ENOMEM: Self = Self(12);
    pub const EINVAL: Self = Self(22);
    pub const ENOSPC: Self = Self(28);
    pub const EOVERFLOW: Self = Self(75);
    pub const ENOTSUP: Self = Self(95);
    pub const ESHUTDOWN: Self = Self(108);

    /// What a client is told of an error. The protocol allows `EOVERFLOW` only where the client forbade fragments,
    /// and `ENOTSUP` only where it asked for fast zeroes.
    pub fn of(errno: Errno, request_flags: u16) -> Self {
        match errno.0 {
            libc::EPERM | libc::EROFS | libc::EACCES => Self::EPERM,
            libc::ENOMEM => Self::ENOMEM,
            libc::EINVAL => Self::EINVAL,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::ENOSPC,
            libc::EOVERFLOW if request_flags & command::FLAG_DF != 0 => Self::EOVERFLOW,
            libc::ENOTSUP if request_flags & command::FLAG_FAST_ZERO != 0 => Self::ENOTSUP,
            libc::EOVERFLOW | libc::ENOTSUP => Self::EINVAL,
            libc::ESHUTDOWN => Self::ESHUTDOWN,
            _ => Self::EIO,
        }
    }

    /// What a server said, as the answer of a disk. The numbers are those of Linux; others count as `EIO`.
    pub fn to_disk(self) -> DiskError {
        DiskError::Io(match self {
            Self::EPERM => Errno::EPERM,
            Self::ENOMEM => Errno::ENOMEM,
            Self::EINVAL => Errno::EINVAL,
            Self::ENOSPC => Errno::ENOSPC,
            Self::EOVERFLOW => Errno::EOVERFLOW,
            Self::ENOTSUP => Errno::ENOTSUP,
            Self::ESHUTDOWN => Errno::ESHUTDOWN,
            _ => Errno::EIO,
        })
    }
}

/// Reads fields from bytes; none where the bytes end too early.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
    /// A string after its 32-bit length.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(length as usize)
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Joins big-endian fields into an array of exactly their length.
macro_rules! join {
    ($length:expr; $($field:expr),+ $(,)?) => {{
        let mut bytes = [0u8; $length];
        let mut at = 0;
        $(
            let field = $field.to_be_bytes();
            bytes[at..at + field.len()].copy_from_slice(&field);
            at += field.len();
        )+
        debug_assert_eq!(at, $length);
        bytes
    }};
}

/// The server's first words.
pub fn greeting(flags: u16) -> [u8; 18] {
    join!(18; SERVER_MAGIC, OPTION_MAGIC, flags)
}

/// Head of an option: what it is and the length of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    pub option: u32,
    pub length: u32,
}

impl OptionHeader {
    pub const LENGTH: usize = 16;

    pub fn encode(self) -> [u8; Self::LENGTH] {
        join!(Self::LENGTH; OPTION_MAGIC, self.option, self.length)
    }
    /// None if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u64()? == OPTION_MAGIC).then_some(())?;
        Some(Self { option: fields.u32()?, length: fields.u32()? })
    }
}

/// Head of a server's reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub length: u32,
}

impl OptionReply {
    pub const LENGTH: usize = 20;

    pub fn encode(self) -> [u8; Self::LENGTH] {
        join!(Self::LENGTH; OPTION_REPLY_MAGIC, self.option, self.kind, self.length)
    }
    /// None if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u64()? == OPTION_REPLY_MAGIC).then_some(())?;
        Some(Self { option: fields.u32()?, kind: fields.u32()?, length: fields.u32()? })
    }
}

/// Data of `INFO` and `GO`: an export's name and the kinds of information that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoQuery<'a> {
    pub name: &'a [u8],
    pub kinds: Vec<u16>,
}

impl<'a> InfoQuery<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = string(self.name);
        bytes.extend((self.kinds.len() as u16).to_be_bytes());
        self.kinds.iter().for_each(|kind| bytes.extend(kind.to_be_bytes()));
        bytes
    }
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let name = fields.string()?;
        let count = fields.u16()?;
        let kinds = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
        fields.is_empty().then_some(Self { name, kinds })
    }
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`: an export's name and which contexts are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextQuery<'a> {
    pub name: &'a [u8],
    pub queries: Vec<&'a [u8]>,
}

impl<'a> ContextQuery<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = string(self.name);
        bytes.extend((self.queries.len() as u32).to_be_bytes());
        self.queries.iter().for_each(|query| bytes.extend(string(query)));
        bytes
    }
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let name = fields.string()?;
        let count = fields.u32()?;
        // Grows with what is really there: the count is the client's word.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.string()?);
        }
        fields.is_empty().then_some(Self { name, queries })
    }
}

/// A string after its 32-bit length.
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + text.len());
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text);
    bytes
}

/// A request of the transmission phase, as it is sent; its fields are unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    /// The client's name for the request; the reply carries it.
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub const LENGTH: usize = 28;

    pub fn encode(self) -> [u8; Self::LENGTH] {
        join!(Self::LENGTH; REQUEST_MAGIC, self.flags, self.command, self.cookie, self.offset, self.length)
    }
    /// None if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == REQUEST_MAGIC).then_some(())?;
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }
}

/// A simple reply; what was read follows a successful read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 is success.
    pub error: u32,
    pub cookie: u64,
}

impl SimpleReply {
    pub const LENGTH: usize = 16;

    pub fn encode(self) -> [u8; Self::LENGTH] {
        join!(Self::LENGTH; SIMPLE_REPLY_MAGIC, self.error, self.cookie)
    }
    /// None if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == SIMPLE_REPLY_MAGIC).then_some(())?;
        Some(Self { error: fields.u32()?, cookie: fields.u64()? })
    }
}

/// Head of a chunk of a structured reply; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub length: u32,
}

impl Chunk {
    pub const LENGTH: usize = 20;

    pub fn encode(self) -> [u8; Self::LENGTH] {
        join!(Self::LENGTH; CHUNK_MAGIC, self.flags, self.kind, self.cookie, self.length)
    }
    /// None if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == CHUNK_MAGIC).then_some(())?;
        Some(Self { flags: fields.u16()?, kind: fields.u16()?, cookie: fields.u64()?, length: fields.u32()? })
    }
    pub fn is_last(self) -> bool {
        self.flags & chunk::FLAG_DONE != 0
    }
}

/// The only chunk of a read: its head and the data's offset; the data follows.
pub fn data_chunk(cookie: u64, offset: u64, length: u32) -> [u8; Chunk::LENGTH + 8] {
    join!(Chunk::LENGTH + 8; CHUNK_MAGIC, chunk::FLAG_DONE, chunk::OFFSET_DATA, cookie, length + 8, offset)
}

/// The last chunk of a reply that failed, without a message.
pub fn error_chunk(cookie: u64, error: NbdError) -> [u8; Chunk::LENGTH + 6] {
    join!(Chunk::LENGTH + 6; CHUNK_MAGIC, chunk::FLAG_DONE, chunk::ERROR, cookie, 6u32, error.0, 0u16)
}

/// A run of an allocation map, as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub length: u32,
    pub state: u32,
}

/// The only chunk of a block status.
pub fn status_chunk(cookie: u64, context: u32, runs: &[Run]) -> Vec<u8> {
    let length = 4 + 8 * runs.len() as u32;
    let mut bytes = Vec::with_capacity(Chunk::LENGTH + length as usize);
    bytes.extend(Chunk { flags: chunk::FLAG_DONE, kind: chunk::BLOCK_STATUS, cookie, length }.encode());
    bytes.extend(context.to_be_bytes());
    runs.iter().for_each(|run| bytes.extend(join!(8; run.length, run.state)));
    bytes
}

/// The context and the runs in the payload of a `BLOCK_STATUS` chunk: at least one run, none empty.
pub fn decode_status(payload: &[u8]) -> Option<(u32, Vec<Run>)> {
    let mut fields = Fields(payload);
    let context = fields.u32()?;
    let (runs, []) = fields.0.as_chunks::<8>() else { return None };
    let runs = runs
        .iter()
        .map(|run| {
            let mut fields = Fields(run);
            let run = Run { length: fields.u32()?, state: fields.u32()? };
            (run.length > 0).then_some(run)
        })
        .collect::<Option<Vec<_>>>()?;
    (!runs.is_empty()).then_some((context, runs))
}

/// The error in the payload of a chunk that tells one: not 0, and the message inside the payload.
pub fn decode_error(payload: &[u8]) -> Option<NbdError> {
    let mut fields = Fields(payload);
    let error = fields.u32()?;
    let message = fields.u16()?;
    fields.bytes(message.into())?;
    (error != 0).then_some(NbdError(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn magics_spell_what_the_protocol_says() {
        assert_eq!(&SERVER_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
        assert_eq!(&greeting(3), b"NBDMAGICIHAVEOPT\x00\x03");
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_changes_it() {
        let all = Abilities {
            read_only: true,
            rotational: true,
            flush: true,
            fua: true,
            trim: true,
            trim_reads_zero: true,
            write_zeroes: true,
            fast_zeroes: true,
            cache: true,
            extents: true,
            multi_conn: true,
        };
        let flags = ExportFlags::of(all, true);
        assert_eq!(flags.0, 0b0101_1001_0111);
        assert_eq!(ExportFlags::of(Abilities { read_only: false, ..all }, false).0, 0b1101_0111_1101);
    }

    #[test]
    fn an_error_that_nbd_does_not_know_is_told_as_eio() {
        assert_eq!(NbdError::of(Errno(libc::EBADF), 0), NbdError::EIO);
        assert_eq!(NbdError::of(Errno(libc::EDQUOT), 0), NbdError::ENOSPC);
        assert_eq!(NbdError::of(Errno(libc::EROFS), 0), NbdError::EPERM);
        assert_eq!(NbdError::of(Errno::ENOTSUP, 0), NbdError::EINVAL);
        assert_eq!(NbdError::of(Errno::ENOTSUP, command::FLAG_FAST_ZERO), NbdError::ENOTSUP);
        assert_eq!(NbdError(4711).to_disk(), DiskError::Io(Errno::EIO));
    }

    #[test]
    fn a_query_with_bytes_left_over_is_malformed() {
        let mut bytes = InfoQuery { name: b"disk", kinds: vec![info::BLOCK_SIZE] }.encode();
        assert!(InfoQuery::decode(&bytes).is_some());
        bytes.push(0);
        assert_eq!(InfoQuery::decode(&bytes), None);
        assert_eq!(ContextQuery::decode(b"\x00\x00\x00\x00\xff\xff\xff\xff"), None);
    }

    #[test]
    fn a_status_without_runs_or_with_an_empty_one_is_malformed() {
        assert_eq!(decode_status(&[0, 0, 0, 1]), None);
        assert_eq!(decode_status(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3]), None);
        let chunk = status_chunk(7, 1, &[Run { length: 4096, state: 3 }]);
        assert_eq!(decode_status(&chunk[Chunk::LENGTH..]), Some((1, vec![Run { length: 4096, state: 3 }])));
    }

    #[test]
    fn an_error_chunk_decodes_to_its_error() {
        let bytes = error_chunk(9, NbdError::ENOSPC);
        let head = Chunk::decode(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!((head.cookie, head.kind, head.is_last()), (9, chunk::ERROR, true));
        assert_eq!(decode_error(&bytes[Chunk::LENGTH..]), Some(NbdError::ENOSPC));
        assert_eq!(decode_error(&[0, 0, 0, 5, 0, 1]), None, "the message is longer than the payload");
        assert_eq!(decode_error(&[0, 0, 0, 0, 0, 0]), None, "an error that is none");
    }

    proptest! {
        #[test]
        fn messages_decode_to_what_was_encoded(
            (a, b) in any::<(u16, u16)>(), (c, d) in any::<(u64, u64)>(), (e, f, g) in any::<(u32, u32, u32)>(),
        ) {
            let request = Request { flags: a, command: b, cookie: c, offset: d, length: e };
            prop_assert_eq!(Request::decode(&request.encode()), Some(request));
            let chunk = Chunk { flags: a, kind: b, cookie: c, length: e };
            prop_assert_eq!(Chunk::decode(&chunk.encode()), Some(chunk));
            let simple = SimpleReply { error: e, cookie: c };
            prop_assert_eq!(SimpleReply::decode(&simple.encode()), Some(simple));
            let option = OptionHeader { option: e, length: f };
            prop_assert_eq!(OptionHeader::decode(&option.encode()), Some(option));
            let reply = OptionReply { option: e, kind: f, length: g };
            prop_assert_eq!(OptionReply::decode(&reply.encode()), Some(reply));
        }

        #[test]
        fn queries_decode_to_what_was_encoded(
            name in proptest::collection::vec(any::<u8>(), 0..50),
            kinds in proptest::collection::vec(any::<u16>(), 0..9),
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..9),
        ) {
            let query = InfoQuery { name: &name, kinds };
            let bytes = query.encode();
            prop_assert_eq!(InfoQuery::decode(&bytes), Some(query));
            let query = ContextQuery { name: &name, queries: texts.iter().map(Vec::as_slice).collect() };
            let bytes = query.encode();
            prop_assert_eq!(ContextQuery::decode(&bytes), Some(query));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = InfoQuery::decode(&bytes);
            let _ = ContextQuery::decode(&bytes);
            let _ = decode_status(&bytes);
            let _ = decode_error(&bytes);
            if let Some(head) = bytes.first_chunk() {
                let _ = Request::decode(head);
            }
            if let Some(head) = bytes.first_chunk() {
                let _ = Chunk::decode(head);
            }
            if let Some(head) = bytes.first_chunk() {
                let _ = SimpleReply::decode(head);
            }
        }
    }
}
