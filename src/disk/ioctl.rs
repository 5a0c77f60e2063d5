//! The two requests to the kernel that have no safe wrapper in rustix: each a number and the one type that it takes.

use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use crate::units::Span;

/// `BLKDISCARD`, linux/fs.h: `_IO(0x12, 119)`, takes a pointer to two u64, offset and length in bytes.
const BLKDISCARD: Opcode = opcode::none(0x12, 119);

/// `FS_IOC_GETFSUUID`, linux/fs.h: `_IOR(0x15, 0, struct fsuuid2)`, Linux 6.9.
const FS_IOC_GETFSUUID: Opcode = opcode::read::<FsUuid2>(0x15, 0);

/// `struct fsuuid2` of linux/fs.h.
#[repr(C)]
struct FsUuid2 {
    length: u8,
    uuid: [u8; 16],
}

/// Tells a block device that the range is not needed. Both ends are multiples of the logical block size.
pub(super) fn discard(device: impl AsFd, span: Span) -> io::Result<()> {
    // SAFETY: the kernel reads two u64 through the pointer that BLKDISCARD is given, and an array of two is given.
    unsafe { ioctl(device, Setter::<BLKDISCARD, [u64; 2]>::new([span.start, span.len()])) }
}

/// The UUID of the filesystem that a file is on.
pub(super) fn filesystem_uuid(file: impl AsFd) -> io::Result<[u8; 16]> {
    // SAFETY: the kernel fills in a `struct fsuuid2` whole before it answers with success; the type has its layout, and
    // every pattern of bits is a value of it.
    let answer = unsafe { ioctl(file, Getter::<FS_IOC_GETFSUUID, FsUuid2>::new()) }?;
    // Some filesystems have one of zeroes, which tells nothing apart.
    if answer.length == 16 && answer.uuid != [0; 16] { Ok(answer.uuid) } else { Err(io::Errno::OPNOTSUPP) }
}
