//! An NBD server that does nothing but answer for a file: `bare SOCKET FILE`. No server on this machine is much faster;
//! `benches/compare --bare` measures it beside the others.
//!
//! It takes all requests that a receive brought, one after the other with pread and pwrite, and sends their replies at
//! once; a thread for each connection. Whatever is wrong ends the connection.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use umbra::nbd::wire::{ExportFlags, OptionHeader, OptionReply, Request, SimpleReply};
use umbra::nbd::wire::{command, greeting, handshake, info, option, reply};

/// What a client may ask for at once, and more than replies are gathered to.
const REQUEST_MAX: usize = 1024 * 1024;
const GATHERED: usize = 256 * 1024;

fn main() -> io::Result<()> {
    let mut arguments = env::args_os().skip(1).filter(|argument| argument != "--bench");
    let (Some(socket), Some(path)) = (arguments.next(), arguments.next()) else {
        // `cargo bench` runs every benchmark, and this is none by itself.
        println!("bare: SOCKET FILE; see benches/compare --bare");
        return Ok(());
    };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    for stream in UnixListener::bind(socket)?.incoming() {
        let (stream, file) = (stream?, file.try_clone()?);
        thread::spawn(move || negotiate(stream, &file).and_then(|stream| serve(stream, &file)));
    }
    Ok(())
}

fn invalid() -> io::Error {
    ErrorKind::InvalidData.into()
}

fn negotiate(mut stream: UnixStream, file: &File) -> io::Result<UnixStream> {
    stream.write_all(&greeting(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES))?;
    stream.read_exact(&mut [0; 4])?;
    let flags = [ExportFlags::HAS_FLAGS, ExportFlags::SEND_FLUSH, ExportFlags::CAN_MULTI_CONN];
    let flags = flags.iter().fold(0, |all, flag| all | flag.0);
    loop {
        let mut head = [0; OptionHeader::LENGTH];
        stream.read_exact(&mut head)?;
        let OptionHeader { option, length } = OptionHeader::decode(&head).ok_or_else(invalid)?;
        io::copy(&mut Read::by_ref(&mut stream).take(length.into()), &mut io::sink())?;
        let mut answer = |kind, data: &[u8]| {
            stream.write_all(&OptionReply { option, kind, length: data.len() as u32 }.encode())?;
            stream.write_all(data)
        };
        if option != option::GO {
            answer(reply::ERR_UNSUP, &[])?;
            continue;
        }
        let size = file.metadata()?.len();
        answer(reply::INFO, &[&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat())?;
        answer(reply::ACK, &[])?;
        return Ok(stream);
    }
}

fn serve(mut stream: UnixStream, file: &File) -> io::Result<()> {
    let (mut received, mut replies) = (vec![0; 4 * REQUEST_MAX], vec![0; GATHERED + 2 * REQUEST_MAX]);
    let (mut from, mut to) = (0, 0);
    loop {
        let mut gathered = 0;
        while gathered < GATHERED
            && let Some((head, rest)) = received[from..to].split_first_chunk()
        {
            let request = Request::decode(head).ok_or_else(invalid)?;
            let length = request.length as usize;
            let payload = if request.command == command::WRITE { length } else { 0 };
            if request.command == command::DISC {
                return Ok(());
            }
            if length > REQUEST_MAX {
                return Err(invalid());
            }
            if rest.len() < payload {
                break;
            }
            let (reply, data) = replies[gathered..].split_at_mut(SimpleReply::LENGTH);
            reply.copy_from_slice(&SimpleReply { error: 0, cookie: request.cookie }.encode());
            gathered += SimpleReply::LENGTH;
            match request.command {
                command::READ => {
                    file.read_exact_at(&mut data[..length], request.offset)?;
                    gathered += length;
                }
                command::WRITE => file.write_all_at(&rest[..payload], request.offset)?,
                command::FLUSH => file.sync_data()?,
                _ => return Err(invalid()),
            }
            from += Request::LENGTH + payload;
        }
        if gathered > 0 {
            stream.write_all(&replies[..gathered])?;
            continue;
        }
        received.copy_within(from..to, 0);
        (from, to) = (0, to - from);
        match stream.read(&mut received[to..])? {
            0 => return Ok(()),
            count => to += count,
        }
    }
}
