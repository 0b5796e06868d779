//! Randomness for ids and secrets.

use std::fmt;

use rand::TryRng;
use zeroize::Zeroizing;

use crate::core::invalid::Invalid;
use crate::core::kind::ErrorKind;
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::text::PepperId;

/// A source of unpredictable random bytes.
pub trait Entropy: fmt::Debug + Send + Sync + 'static {
    /// Fills `out`.
    ///
    /// # Errors
    ///
    /// [`EntropyError`] if the source cannot provide random bytes. No key is created then.
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError>;
}

/// The error of a source that cannot provide random bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no randomness is available")]
pub struct EntropyError;

impl EntropyError {
    /// Returns the stable code: `no-randomness`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        "no-randomness"
    }

    /// Returns [`ErrorKind::Unavailable`].
    #[must_use]
    pub const fn kind(self) -> ErrorKind {
        ErrorKind::Unavailable
    }

    /// Returns the text that a client may see. It hides the cause.
    #[must_use]
    pub const fn public_message(self) -> &'static str {
        "the service cannot answer at the moment: try again later"
    }
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        rand::rngs::SysRng
            .try_fill_bytes(out)
            .map_err(|_| EntropyError)
    }
}

impl<E: Entropy + ?Sized> Entropy for std::sync::Arc<E> {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        (**self).fill(out)
    }
}

/// A source that repeats the same bytes for the same seed. For tests only: anyone with the seed can derive
/// every key.
#[cfg(feature = "testing")]
pub struct SeededEntropy(std::sync::Mutex<rand::rngs::ChaCha12Rng>);

#[cfg(feature = "testing")]
impl SeededEntropy {
    /// Creates a source that returns the same bytes for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        use rand::SeedableRng;
        Self(std::sync::Mutex::new(
            rand::rngs::ChaCha12Rng::seed_from_u64(seed),
        ))
    }
}

#[cfg(feature = "testing")]
impl fmt::Debug for SeededEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededEntropy(…)")
    }
}

#[cfg(feature = "testing")]
impl Entropy for SeededEntropy {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        let mut rng = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        rng.try_fill_bytes(out).map_err(|_| EntropyError)
    }
}

impl Pepper {
    /// Generates a pepper of 32 random bytes from the operating system. The pepper is lost when the process
    /// ends, so use it only with a store in memory. For other stores, load a pepper that is kept outside the
    /// store.
    ///
    /// # Errors
    ///
    /// [`EntropyError`] if the operating system cannot provide random bytes.
    pub fn generate(id: PepperId) -> Result<Self, EntropyError> {
        let mut key = Zeroizing::new([0; Self::MIN_LEN]);
        SystemEntropy.fill(key.as_mut())?;
        Self::new(id, key.as_ref()).map_err(|_: Invalid| EntropyError)
    }
}

impl PepperRing {
    /// Creates a ring of one [generated](Pepper::generate) pepper.
    ///
    /// # Errors
    ///
    /// [`EntropyError`] if the operating system cannot provide random bytes.
    pub fn generate() -> Result<Self, EntropyError> {
        let id = PepperId::new("generated").map_err(|_: Invalid| EntropyError)?;
        Pepper::generate(id).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_does_not_repeat_itself() {
        let draw = || {
            let mut bytes = [0; 32];
            SystemEntropy.fill(&mut bytes).unwrap();
            bytes
        };
        assert_ne!(draw(), draw());
    }

    #[cfg(feature = "testing")]
    #[test]
    fn a_seed_repeats_itself_and_no_other_seed() {
        let draw = |seed| {
            let mut bytes = [0; 32];
            SeededEntropy::new(seed).fill(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
