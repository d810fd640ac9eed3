//! Protobuf's wire format, read field by field from a slice that is one whole message. Knows no message.

/// What is not in the one form that prost and Feast's protobuf write; it may still be readable otherwise.
#[derive(Debug)]
pub(crate) struct Unusual;

type Result<T> = std::result::Result<T, Unusual>;

/// The wire types of the fields that `feast.types.Value` has.
pub(crate) const VARINT: u64 = 0;
pub(crate) const FIXED64: u64 = 1;
pub(crate) const DELIMITED: u64 = 2;
pub(crate) const FIXED32: u64 = 5;

/// Takes a varint off the front.
pub(crate) fn varint(bytes: &mut &[u8]) -> Result<u64> {
    if let [byte @ 0..0x80, rest @ ..] = *bytes {
        *bytes = rest;
        return Ok(u64::from(*byte));
    }
    prost::encoding::decode_varint(bytes).map_err(|_| Unusual)
}

/// Takes a length and so many bytes off the front.
pub(crate) fn delimited<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = usize::try_from(varint(bytes)?).map_err(|_| Unusual)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Unusual)?;
    *bytes = rest;
    Ok(taken)
}

/// Takes `N` bytes off the front.
pub(crate) fn fixed<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(Unusual)?;
    *bytes = rest;
    Ok(*taken)
}

/// The only field of a message, where it is field `number` with a length; `None` of an empty message.
pub(crate) fn only(bytes: &[u8], number: u8) -> Result<Option<&[u8]>> {
    let mut rest = bytes;
    let field = next(&mut rest, number)?;
    if rest.is_empty() { Ok(field) } else { Err(Unusual) }
}

/// Takes a field `number` with a length off the front; `None` at the end.
pub(crate) fn next<'a>(bytes: &mut &'a [u8], number: u8) -> Result<Option<&'a [u8]>> {
    match *bytes {
        [] => Ok(None),
        [key, rest @ ..] if *key == number << 3 | DELIMITED as u8 => {
            *bytes = rest;
            delimited(bytes).map(Some)
        }
        _ => Err(Unusual),
    }
}

/// UTF-8, as proto3's strings must be.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Unusual)
}
