//! Enumerations and durations as the command line accepts them.

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
