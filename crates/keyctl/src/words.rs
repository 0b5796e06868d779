//! Enumerations and durations as the command line accepts them.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::ValueEnum;

macro_rules! words {
    ($($name:ident => $of:ty { $($word:ident),* })*) => {$(
        #[derive(Clone, Copy, Debug, ValueEnum)]
        pub(crate) enum $name { $($word),* }

        impl From<$name> for $of {
            fn from(word: $name) -> Self {
                match word { $($name::$word => Self::$word),* }
            }
        }
    )*};
}

words! {
    StatusWord => keyward::key::Status { Active, Retiring, Disabled, Expired, Revoked }
    SortWord => keyward::store::KeySort { Created, Newest, Name, Expiry }
    ReasonWord => keyward::Reason { Lost, Compromised, Leaked, Unused, NoLongerNeeded }
    RotationWord => keyward::key::RotationReason { Routine, Compromise, ExpiryNear, Incident }
}

/// Formats a number with its noun, such as `1 key` or `2 audit entries`.
pub(crate) fn counted(number: impl Display, noun: &str) -> String {
    let number = number.to_string();
    match noun.strip_suffix("ry") {
        _ if number == "1" => format!("{number} {noun}"),
        Some(stem) => format!("{number} {stem}ries"),
        None => format!("{number} {noun}s"),
    }
}

/// Parses a number of rows per page.
pub(crate) fn page_size(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "must be a number, 1 or more")
}

pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    let expected = "must be a number with d, h, m or s, such as 90d";
    let (at, unit) = text.char_indices().next_back().ok_or(expected)?;
    let seconds: u64 = match unit {
        'd' => 24 * 60 * 60,
        'h' => 60 * 60,
        'm' => 60,
        's' => 1,
        _ => return Err(expected),
    };
    let count: u64 = text[..at].parse().map_err(|_| expected)?;
    let total = count.checked_mul(seconds).ok_or(expected)?;
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn a_count_of_one_has_a_noun_in_the_singular() {
        assert_eq!(counted(1, "key"), "1 key");
        assert_eq!(counted(0, "key"), "0 keys");
        assert_eq!(counted(1, "audit entry"), "1 audit entry");
        assert_eq!(counted(11, "audit entry"), "11 audit entries");
    }
}
