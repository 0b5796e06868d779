//! Targets that decode what a store or a client keeps: records, audit entries, cursors.

use keyward::audit::AuditEntry;
use keyward::events::{EventCursor, EventId};
use keyward::key::KeyRecord;
use keyward::store::{OwnerRecord, TenantRecord};

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

/// Parses a position in the stream of events, and an event's id. What a value displays parses to the same value. The
/// input is also taken for the content of a position, with the checksum and the digits that belong to it.
pub fn position(input: &[u8]) {
    let sealed = [input, &checksum(input).to_le_bytes()].concat();
    let digits: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Ok(cursor) = digits.parse::<EventCursor>() {
        assert_eq!(cursor.to_string().parse::<EventCursor>().unwrap(), cursor);
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(cursor) = text.parse::<EventCursor>() {
        assert_eq!(cursor.to_string().parse::<EventCursor>().unwrap(), cursor);
    }
    if let Ok(id) = text.parse::<EventId>() {
        assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
    }
}
