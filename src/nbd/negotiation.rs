//! The server's side of fixed newstyle negotiation (proto.md, "Newstyle negotiation"): which export, and how.
//!
//! Owns: options, their replies and their limits. Leaves to `server` the time that it may take, and
//! to `session` what follows. Nothing is read beyond the last option, so the stream goes on as it is.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::export::{Export, Exports};
use super::wire::{
    self, ContextQuery, ExportFlags, InfoQuery, OptionHeader, OptionReply, handshake, info, option, reply,
};
use crate::disk::Geometry;
use crate::units::REQUEST_MAX;

/// Longest data of an option that is looked at: the longest name and room for many queries.
const OPTION_LENGTH_MAX: u32 = 64 * 1024;
/// Longest data that is skipped to tell the client that it is too long; beyond it the connection is dropped.
const OPTION_SKIP_MAX: u32 = 1024 * 1024;
/// Options before one of them must open the export: more than any client needs to look at every export of a server.
const OPTIONS_MAX: usize = 1024;
/// Our number for `base:allocation`.
pub(super) const CONTEXT: u32 = 1;

/// What both sides agreed on.
#[derive(Clone)]
pub(super) struct Agreed {
    pub export: Arc<Export>,
    /// As it was told to the client: it holds for the whole session.
    pub geometry: Geometry,
    pub structured_replies: bool,
    /// `base:allocation` was chosen.
    pub block_status: bool,
}

/// Why a connection ended before transmission.
#[derive(Debug, thiserror::Error)]
pub(super) enum NegotiationError {
    #[error("handshake")]
    Io(#[from] io::Error),
    #[error("the client set unknown handshake flags {0:#x}")]
    UnknownFlags(u32),
    #[error("an option did not begin with IHAVEOPT")]
    BadMagic,
    #[error("option {option} has {length} bytes of data")]
    TooLong { option: u32, length: u32 },
    #[error("more than {OPTIONS_MAX} options")]
    TooMany,
    #[error("there is no export named {0:?}")]
    NoSuchExport(String),
}

/// None if the client only looked, and left as it should.
pub(super) async fn negotiate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    exports: &Exports,
) -> Result<Option<Agreed>, NegotiationError> {
    stream.write_all(&wire::greeting(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES)).await?;
    let client_flags = stream.read_u32().await?;
    let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    if client_flags & !known != 0 {
        return Err(NegotiationError::UnknownFlags(client_flags));
    }
    let padded = client_flags & u32::from(handshake::NO_ZEROES) == 0;
    let mut negotiation = Negotiation { exports, padded, structured_replies: false, status_of: None, out: Vec::new() };
    for _ in 0..OPTIONS_MAX {
        let mut head = [0; OptionHeader::LENGTH];
        stream.read_exact(&mut head).await?;
        let OptionHeader { option, length } = OptionHeader::decode(&head).ok_or(NegotiationError::BadMagic)?;
        let next = if length > OPTION_LENGTH_MAX {
            if length > OPTION_SKIP_MAX || option == option::EXPORT_NAME {
                return Err(NegotiationError::TooLong { option, length });
            }
            skip(stream, length).await?;
            negotiation.refuse(option, reply::ERR_TOO_BIG, "too much data");
            Next::Option
        } else {
            let mut data = vec![0; length as usize];
            stream.read_exact(&mut data).await?;
            negotiation.answer(option, &data)?
        };
        // A client that leaves need not wait for the answer.
        let written = stream.write_all(&negotiation.out).await;
        negotiation.out.clear();
        match next {
            Next::Option => written?,
            Next::Left => return Ok(None),
            Next::Transmission(agreed) => {
                written?;
                return Ok(Some(agreed));
            }
        }
    }
    Err(NegotiationError::TooMany)
}

async fn skip(stream: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut stream.take(length.into()), &mut tokio::io::sink()).await?;
    if skipped == u64::from(length) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// What comes after an option.
enum Next {
    Option,
    Left,
    Transmission(Agreed),
}

struct Negotiation<'a> {
    exports: &'a Exports,
    /// The answer to `EXPORT_NAME` ends with zeroes.
    padded: bool,
    structured_replies: bool,
    /// The export that `base:allocation` was chosen for.
    status_of: Option<Arc<Export>>,
    /// Replies to the option at hand.
    out: Vec<u8>,
}

impl Negotiation<'_> {
    fn answer(&mut self, option: u32, data: &[u8]) -> Result<Next, NegotiationError> {
        match option {
            option::EXPORT_NAME => {
                let export = (data.len() <= wire::STRING_MAX).then(|| self.exports.find(data)).flatten();
                let export = export.ok_or_else(|| {
                    NegotiationError::NoSuchExport(String::from_utf8_lossy(data).chars().take(80).collect())
                })?;
                return Ok(Next::Transmission(self.export_name(export)));
            }
            option::ABORT => {
                self.reply(option, reply::ACK, &[]);
                return Ok(Next::Left);
            }
            option::LIST if data.is_empty() => self.list(),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured_replies = true;
                self.reply(option, reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.refuse(option, reply::ERR_INVALID, "this option has no data");
            }
            option::INFO | option::GO => {
                if let Some(agreed) = self.information(option, data)
                    && option == option::GO
                {
                    return Ok(Next::Transmission(agreed));
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data),
            _ => self.refuse(option, reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Next::Option)
    }

    fn export_name(&mut self, export: Arc<Export>) -> Agreed {
        let agreed = self.agree(export);
        self.out.extend(agreed.geometry.size.to_be_bytes());
        self.out.extend(agreed.flags().0.to_be_bytes());
        if self.padded {
            self.out.extend([0; wire::EXPORT_NAME_PADDING]);
        }
        agreed
    }

    fn list(&mut self) {
        for export in self.exports.list() {
            let mut data = wire::string(export.name.as_bytes());
            data.extend(export.description.bytes());
            self.reply(option::LIST, reply::SERVER, &data);
        }
        self.reply(option::LIST, reply::ACK, &[]);
    }

    /// `INFO` and `GO`. Block sizes are told whether they were asked for or not: they are enforced either way.
    fn information(&mut self, option: u32, data: &[u8]) -> Option<Agreed> {
        let Some(query) = InfoQuery::decode(data) else {
            self.refuse(option, reply::ERR_INVALID, "malformed");
            return None;
        };
        let export = self.find(option, query.name)?;
        let agreed = self.agree(export);
        let Geometry { size, block, .. } = agreed.geometry;
        let maximum = block.maximum.min(REQUEST_MAX);
        let flags = agreed.flags().0;
        self.inform(option, info::EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
        if query.kinds.contains(&info::NAME) {
            self.inform(option, info::NAME, &[agreed.export.name.as_bytes()]);
        }
        if query.kinds.contains(&info::DESCRIPTION) && !agreed.export.description.is_empty() {
            self.inform(option, info::DESCRIPTION, &[agreed.export.description.as_bytes()]);
        }
        let sizes = [block.minimum, block.preferred.min(maximum), maximum].map(u32::to_be_bytes);
        self.inform(option, info::BLOCK_SIZE, &[sizes.as_flattened()]);
        self.reply(option, reply::ACK, &[]);
        Some(agreed)
    }

    fn contexts(&mut self, option: u32, data: &[u8]) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.status_of = None;
        }
        let Some(query) = ContextQuery::decode(data) else {
            return self.refuse(option, reply::ERR_INVALID, "malformed");
        };
        if !self.structured_replies {
            return self.refuse(option, reply::ERR_INVALID, "structured replies come first");
        }
        let Some(export) = self.find(option, query.name) else { return };
        let named = query.queries.iter().any(|query| *query == wire::BASE_ALLOCATION.as_bytes());
        let matched =
            named || !set && (query.queries.is_empty() || query.queries.iter().any(|query| *query == b"base:"));
        if matched && export.disk.geometry().abilities.extents {
            let mut data = CONTEXT.to_be_bytes().to_vec();
            data.extend(wire::BASE_ALLOCATION.bytes());
            self.reply(option, reply::META_CONTEXT, &data);
            if set {
                self.status_of = Some(export);
            }
        }
        self.reply(option, reply::ACK, &[]);
    }

    fn find(&mut self, option: u32, name: &[u8]) -> Option<Arc<Export>> {
        if name.len() > wire::STRING_MAX {
            self.refuse(option, reply::ERR_TOO_BIG, "the name is too long");
            return None;
        }
        let export = self.exports.find(name);
        if export.is_none() {
            self.refuse(option, reply::ERR_UNKNOWN, "no such export");
        }
        export
    }

    fn agree(&self, export: Arc<Export>) -> Agreed {
        let block_status = self.status_of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &export));
        let geometry = export.disk.geometry();
        Agreed { export, geometry, structured_replies: self.structured_replies, block_status }
    }

    fn inform(&mut self, option: u32, kind: u16, data: &[&[u8]]) {
        let data = [&kind.to_be_bytes()[..], &data.concat()].concat();
        self.reply(option, reply::INFO, &data);
    }

    fn refuse(&mut self, option: u32, kind: u32, message: &str) {
        self.reply(option, kind, message.as_bytes());
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.out.extend(OptionReply { option, kind, length: data.len() as u32 }.encode());
        self.out.extend(data);
    }
}

impl Agreed {
    fn flags(&self) -> ExportFlags {
        ExportFlags::of(self.geometry.abilities, self.structured_replies)
    }
}
