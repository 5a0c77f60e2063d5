//! Text of logins and of text requests: `key=value` pairs, each followed by a zero byte (RFC 7143, section 6.1).

/// The longest name of a key (6.1).
const KEY_MAX: usize = 63;
/// The longest value: a challenge of 1024 bytes in hexadecimal (6.1, 12.1.3), with room.
const VALUE_MAX: usize = 8192;
/// All text of one negotiation step, however many PDUs it comes in.
pub const TEXT_MAX: usize = 64 * 1024;

/// Answers to what cannot be agreed on (6.2).
pub const REJECT: &str = "Reject";
pub const IRRELEVANT: &str = "Irrelevant";
pub const NOT_UNDERSTOOD: &str = "NotUnderstood";
pub const NONE: &str = "None";
pub const YES: &str = "Yes";
pub const NO: &str = "No";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("text that is no key=value")]
    NoPair,
    #[error("a key or a value that is too long")]
    TooLong,
    #[error("text that is not UTF-8")]
    NotUtf8,
}

/// The pairs of a text. The last zero byte may be absent, as some initiators have it.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = Result<(&str, &str), TextError>> {
    text.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()).map(|pair| {
        let pair = std::str::from_utf8(pair).map_err(|_| TextError::NotUtf8)?;
        let (key, value) = pair.split_once('=').ok_or(TextError::NoPair)?;
        match key.len() {
            0 => Err(TextError::NoPair),
            1..=KEY_MAX if value.len() <= VALUE_MAX => Ok((key, value)),
            _ => Err(TextError::TooLong),
        }
    })
}

pub fn put(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend_from_slice(key.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    text.push(0);
}

/// The parts of a list of values (6.1).
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',')
}

/// A number, decimal or hexadecimal (6.1).
pub fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u32::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None if value.bytes().all(|digit| digit.is_ascii_digit()) => value.parse().ok(),
        None => None,
    }
}

/// Bytes as they are written in hexadecimal or in base64 (6.1), at most `max`.
pub fn bytes(value: &str, max: usize) -> Option<Vec<u8>> {
    let (encoding, digits) = value.split_at_checked(2)?;
    let decoded = match encoding {
        "0x" | "0X" if digits.len() <= 2 * max => {
            // A leading zero may be left out.
            let padded = if digits.len() % 2 == 0 { digits.to_owned() } else { format!("0{digits}") };
            let pairs = padded.as_bytes().chunks_exact(2);
            pairs.map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect::<Option<Vec<_>>>()?
        }
        "0b" | "0B" if digits.len() <= 2 * max => base64(digits)?,
        _ => return None,
    };
    (decoded.len() <= max).then_some(decoded)
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        text.extend([byte >> 4, byte & 15].map(|nibble| char::from(b"0123456789abcdef"[usize::from(nibble)])));
        text
    })
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|nibble| nibble as u8)
}

fn base64(digits: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_what_stands_between_zero_bytes() {
        let text = b"InitiatorName=iqn.a:b=c\0SessionType=Normal\0\0";
        let found: Vec<_> = pairs(text).map(Result::unwrap).collect();
        assert_eq!(found, [("InitiatorName", "iqn.a:b=c"), ("SessionType", "Normal")]);
        assert_eq!(pairs(b"X").next(), Some(Err(TextError::NoPair)));
        assert_eq!(pairs(b"=1").next(), Some(Err(TextError::NoPair)));
        assert_eq!(pairs(b"A=\xff").next(), Some(Err(TextError::NotUtf8)));
        assert_eq!(pairs(&[[b'a'; 64].as_slice(), b"=1"].concat()).next(), Some(Err(TextError::TooLong)));
        assert_eq!(pairs(&[b"a=".as_slice(), &[b'b'; 8193]].concat()).next(), Some(Err(TextError::TooLong)));
    }

    #[test]
    fn numbers_and_bytes_are_read_as_they_may_be_written() {
        assert_eq!(["0", "8192", "0x20", "0XfF"].map(number), [Some(0), Some(8192), Some(32), Some(255)]);
        assert_eq!(["", "-1", "+1", "0x", "0x+1", "4294967296", "1 "].map(number), [None; 7]);
        assert_eq!(bytes("0x0aFF", 2), Some(vec![10, 255]));
        assert_eq!(bytes("0xaff", 2), Some(vec![10, 255]));
        assert_eq!(bytes("0bCv8=", 2), Some(vec![10, 255]));
        for wrong in ["", "0", "0x0g", "0b!", "10", "0x010203", "0bAQID", "é0"] {
            assert_eq!(bytes(wrong, 2), None, "{wrong}");
        }
        assert_eq!(hexadecimal(&[10, 255]), "0x0aff");
    }
}
