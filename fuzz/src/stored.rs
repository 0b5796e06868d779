//! Targets that decode what a store or a client keeps: records, audit entries, cursors.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use keyward::audit::AuditEntry;
use keyward::events::{EventCursor, EventId};
use keyward::key::KeyRecord;
use keyward::store::{AuditPosition, KeyPosition, OwnerRecord, TenantRecord};

/// Decodes a stored value. The first byte chooses its type; the checksum is computed here, since the fuzzer cannot
/// guess it. What a value is encoded to decodes to the same value.
pub fn record(input: &[u8]) {
    let Some((kind, body)) = input.split_first() else {
        return;
    };
    let mut bytes = body.to_vec();
    bytes.extend_from_slice(&checksum(body).to_le_bytes());
    macro_rules! decode {
        ($type:ty) => {
            if let Ok(value) = <$type>::from_bytes(&bytes) {
                let again = value.to_bytes();
                assert_eq!(<$type>::from_bytes(&again).unwrap(), value);
            }
        };
    }
    match kind % 4 {
        0 => decode!(KeyRecord),
        1 => decode!(OwnerRecord),
        2 => decode!(TenantRecord),
        _ => decode!(AuditEntry),
    }
}

/// The CRC-32 (IEEE), bit by bit.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn parse_position<P: FromStr + Display + PartialEq + Debug>(text: &str)
where
    P::Err: Debug,
{
    if let Ok(position) = text.parse::<P>() {
        assert_eq!(position.to_string().parse::<P>().unwrap(), position);
    }
}

/// Parses positions of every kind, and an event's id. What a value displays parses to the same value. The input is
/// also taken for the content of a position, with the checksum and the digits that belong to it. Its first byte
/// chooses the kind.
pub fn position(input: &[u8]) {
    if let Some((kind, body)) = input.split_first() {
        let start = ["key-1-", "events-1-", "audit-1-"][usize::from(kind % 3)];
        let checked = [start.as_bytes(), body].concat();
        let sealed = [body, &checksum(&checked).to_le_bytes()].concat();
        let digits: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("{start}{digits}");
        parse_position::<KeyPosition>(&text);
        parse_position::<EventCursor>(&text);
        parse_position::<AuditPosition>(&text);
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    parse_position::<KeyPosition>(text);
    parse_position::<EventCursor>(text);
    parse_position::<AuditPosition>(text);
    if let Ok(id) = text.parse::<EventId>() {
        assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
    }
}
