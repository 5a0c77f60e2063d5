//! The client's side of fixed newstyle negotiation: connects, and learns what the export is.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::disk::{Abilities, BlockSizes, Geometry};
use crate::nbd::uri::{ServerAddress, Uri};
use crate::nbd::wire::{self, ContextQuery, ExportFlags, Fields, InfoQuery, OptionHeader, OptionReply};
use crate::nbd::wire::{handshake, info, option, reply};
use crate::net::Stream;
use crate::units::REQUEST_MAX;

/// From the first packet to the end of the handshake.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest data of one reply to an option: strings have at most 4 KiB.
const REPLY_LENGTH_MAX: u32 = 64 * 1024;
/// Replies to one option: some kinds of information, known and unknown, and the last word.
const REPLIES_MAX: usize = 256;
/// Where the server tells no block sizes (proto.md, "Block size constraints").
const DEFAULT_BLOCK: BlockSizes = BlockSizes { minimum: 1, preferred: 4096, maximum: REQUEST_MAX };
/// The specification's upper bound of the minimum block size.
const MINIMUM_MAX: u32 = 64 * 1024;

/// What the server said of the export, and how it is to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub geometry: Geometry,
    pub structured_replies: bool,
    /// The server's number for `base:allocation`, if it has it.
    pub context: Option<u32>,
}

/// Why an export could not be opened on a server that was reached.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the server could not be reached")]
    Unreachable(#[source] io::Error),
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("no answer within {CONNECT_MAX:?}")]
    TimedOut,
    #[error("this is not an NBD server")]
    NotNbd,
    #[error("the server speaks the oldstyle protocol, which carries no export names; it needs a newer server")]
    Oldstyle,
    #[error("there is no export of this name")]
    NoSuchExport,
    #[error("the server insists on TLS, which is not supported; allow plain connections from here")]
    TlsRequired,
    #[error("the server refused (reply {kind:#x}) and said {message:?}")]
    Refused { kind: u32, message: String },
    #[error("the server broke the protocol: {0}")]
    Broken(&'static str),
    #[error("the export claims a size of {0} bytes, which cannot be served")]
    Size(u64),
}

pub(super) async fn connect(uri: &Uri) -> Result<(Stream, Terms), HandshakeError> {
    let connecting = async {
        let mut stream = match &uri.server {
            ServerAddress::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).await.and_then(Stream::tcp),
            ServerAddress::Unix(path) => UnixStream::connect(path).await.and_then(Stream::unix),
        }
        .map_err(HandshakeError::Unreachable)?;
        let terms = negotiate(&mut stream, &uri.export).await?;
        Ok((stream, terms))
    };
    timeout(CONNECT_MAX, connecting).await.unwrap_or(Err(HandshakeError::TimedOut))
}

pub(super) async fn negotiate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    export: &str,
) -> Result<Terms, HandshakeError> {
    if stream.read_u64().await? != wire::SERVER_MAGIC {
        return Err(HandshakeError::NotNbd);
    }
    match stream.read_u64().await? {
        wire::OPTION_MAGIC => {}
        wire::OLDSTYLE_MAGIC => return Err(HandshakeError::Oldstyle),
        _ => return Err(HandshakeError::NotNbd),
    }
    let server_flags = stream.read_u16().await?;
    let ours = server_flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream.write_all(&u32::from(ours).to_be_bytes()).await?;
    let padded = ours & handshake::NO_ZEROES == 0;
    if ours & handshake::FIXED_NEWSTYLE == 0 {
        return export_name(stream, export, padded, false).await;
    }

    ask(stream, option::STRUCTURED_REPLY, &[]).await?;
    let structured_replies = match answer(stream, option::STRUCTURED_REPLY).await? {
        (reply::ACK, _) => true,
        (kind, _) if kind & reply::ERROR != 0 => false,
        _ => return Err(HandshakeError::Broken("an unexpected reply to STRUCTURED_REPLY")),
    };
    let context = if structured_replies { choose_context(stream, export).await? } else { None };

    ask(stream, option::GO, &InfoQuery { name: export.as_bytes(), kinds: vec![info::BLOCK_SIZE] }.encode()).await?;
    let (mut told, mut block) = (None, DEFAULT_BLOCK);
    for _ in 0..REPLIES_MAX {
        match answer(stream, option::GO).await? {
            (reply::ACK, _) => {
                let (size, flags) = told.ok_or(HandshakeError::Broken("GO without the export's size"))?;
                return terms(size, flags, block, structured_replies, context);
            }
            (reply::INFO, data) => {
                let mut fields = Fields(&data);
                match fields.u16() {
                    Some(info::EXPORT) => {
                        told = Some(size_and_flags(&mut fields).ok_or(HandshakeError::Broken("INFO of the export"))?);
                    }
                    Some(info::BLOCK_SIZE) => {
                        block = block_sizes(&mut fields).ok_or(HandshakeError::Broken("INFO of the block sizes"))?;
                    }
                    Some(_) => {}
                    None => return Err(HandshakeError::Broken("INFO without a kind")),
                }
            }
            (reply::ERR_UNSUP, _) => return export_name(stream, export, padded, structured_replies).await,
            (reply::ERR_UNKNOWN, _) => return Err(HandshakeError::NoSuchExport),
            (reply::ERR_TLS_REQD, _) => return Err(HandshakeError::TlsRequired),
            (kind, data) if kind & reply::ERROR != 0 => {
                let message = String::from_utf8_lossy(&data).chars().take(200).collect();
                return Err(HandshakeError::Refused { kind, message });
            }
            _ => return Err(HandshakeError::Broken("an unexpected reply to GO")),
        }
    }
    Err(HandshakeError::Broken("too many replies to GO"))
}

/// The way of old servers: no errors, no block sizes, no block status.
async fn export_name(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    export: &str,
    padded: bool,
    structured_replies: bool,
) -> Result<Terms, HandshakeError> {
    ask(stream, option::EXPORT_NAME, export.as_bytes()).await?;
    let mut data = [0; 10];
    match stream.read_exact(&mut data).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(HandshakeError::NoSuchExport),
        other => other?,
    };
    if padded {
        stream.read_exact(&mut [0; wire::EXPORT_NAME_PADDING]).await?;
    }
    let (size, flags) = size_and_flags(&mut Fields(&data)).ok_or(HandshakeError::Broken("EXPORT_NAME"))?;
    terms(size, flags, DEFAULT_BLOCK, structured_replies, None)
}

async fn choose_context(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    export: &str,
) -> Result<Option<u32>, HandshakeError> {
    let query = ContextQuery { name: export.as_bytes(), queries: vec![wire::BASE_ALLOCATION.as_bytes()] };
    ask(stream, option::SET_META_CONTEXT, &query.encode()).await?;
    let mut context = None;
    for _ in 0..REPLIES_MAX {
        match answer(stream, option::SET_META_CONTEXT).await? {
            (reply::ACK, _) => return Ok(context),
            (reply::META_CONTEXT, data) => {
                let mut fields = Fields(&data);
                let number = fields.u32().ok_or(HandshakeError::Broken("META_CONTEXT"))?;
                if fields.0 == wire::BASE_ALLOCATION.as_bytes() {
                    context = Some(number);
                }
            }
            // Whatever is wrong, GO will tell it better.
            (kind, _) if kind & reply::ERROR != 0 => return Ok(None),
            _ => return Err(HandshakeError::Broken("an unexpected reply to SET_META_CONTEXT")),
        }
    }
    Err(HandshakeError::Broken("too many replies to SET_META_CONTEXT"))
}

async fn ask(stream: &mut (impl AsyncWrite + Unpin), option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = OptionHeader { option, length: data.len() as u32 }.encode().to_vec();
    message.extend(data);
    stream.write_all(&message).await
}

/// Type and data of one reply to this option.
async fn answer(stream: &mut (impl AsyncRead + Unpin), option: u32) -> Result<(u32, Vec<u8>), HandshakeError> {
    let mut head = [0; OptionReply::LENGTH];
    stream.read_exact(&mut head).await?;
    let head = OptionReply::decode(&head).ok_or(HandshakeError::Broken("the magic of a reply to an option"))?;
    if head.option != option {
        return Err(HandshakeError::Broken("a reply to an option that was not asked"));
    }
    if head.length > REPLY_LENGTH_MAX {
        return Err(HandshakeError::Broken("a reply to an option that is too long"));
    }
    let mut data = vec![0; head.length as usize];
    stream.read_exact(&mut data).await?;
    Ok((head.kind, data))
}

fn size_and_flags(fields: &mut Fields) -> Option<(u64, ExportFlags)> {
    let told = (fields.u64()?, ExportFlags(fields.u16()?));
    fields.is_empty().then_some(told)
}

/// None if they break the specification's rules for them.
fn block_sizes(fields: &mut Fields) -> Option<BlockSizes> {
    let (minimum, preferred, maximum) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let sane = fields.is_empty()
        && minimum.is_power_of_two()
        && minimum <= MINIMUM_MAX
        && preferred.is_power_of_two()
        && preferred >= minimum
        && maximum >= minimum
        && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
    let maximum = maximum.min(REQUEST_MAX);
    sane.then_some(BlockSizes { minimum, preferred: preferred.min(maximum), maximum })
}

fn terms(
    size: u64,
    flags: ExportFlags,
    block: BlockSizes,
    structured_replies: bool,
    context: Option<u32>,
) -> Result<Terms, HandshakeError> {
    // Offsets of the protocol's other end are signed in most programs; none has a disk this large.
    if size == 0 || size > i64::MAX as u64 {
        return Err(HandshakeError::Size(size));
    }
    let abilities: Abilities = flags.abilities(context.is_some());
    Ok(Terms { geometry: Geometry { size, block, abilities }, structured_replies, context })
}
