//! The version of a store's tables, and the rule that decides which builds may use them.
//!
//! An upgrade has two steps, so that nodes of the previous version continue while each node is replaced:
//!
//! 1. A new build adds what earlier builds ignore: tables, indexes, and columns that may be null. It raises
//!    `version` and keeps `oldest`. Until the second step, the build writes only what every build from `oldest` on
//!    can read.
//! 2. `finish_upgrade` of the new build raises `oldest`. Each transaction checks the versions, so earlier builds
//!    fail from their next transaction on.

use std::fmt;

use crate::store::TABLES_VERSION;

/// The version of the tables that this build creates and writes.
pub(in crate::store) const VERSION: i32 = TABLES_VERSION.cast_signed();

/// The versions that are stored with the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::store) struct TablesVersion {
    /// The version of the tables.
    pub(in crate::store) version: i32,
    /// The version of the oldest build that may use the tables.
    pub(in crate::store) oldest: i32,
}

impl TablesVersion {
    /// The versions of new tables.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) const NEW: Self = Self {
        version: VERSION,
        oldest: VERSION,
    };

    /// Fails unless this build may read and write the tables.
    pub(in crate::store) fn check(self) -> Result<(), VersionFault> {
        self.check_build(VERSION)
    }

    /// Fails unless the tables have exactly the version of this build. An earlier build would leave out the
    /// columns and tables that a later build has added.
    pub(in crate::store) fn check_is_own(self) -> Result<(), VersionFault> {
        match self.version == VERSION {
            true => self.check(),
            false => Err(self.fault(VERSION)),
        }
    }

    fn check_build(self, build: i32) -> Result<(), VersionFault> {
        match (self.oldest..=self.version).contains(&build) {
            true => Ok(()),
            false => Err(self.fault(build)),
        }
    }

    const fn fault(self, supported: i32) -> VersionFault {
        VersionFault {
            found: self.version,
            oldest: self.oldest,
            supported,
        }
    }

    /// Returns both versions as one number, with `oldest` in the upper 16 bits.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) const fn packed(self) -> i32 {
        self.oldest << 16 | self.version
    }

    /// Reverses [`packed`](Self::packed).
    #[cfg(feature = "sqlite")]
    pub(in crate::store) const fn unpacked(packed: i32) -> Self {
        Self {
            version: packed & 0xffff,
            oldest: packed >> 16,
        }
    }
}

/// The error of tables that this build may not use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::store) struct VersionFault {
    pub(in crate::store) found: i32,
    pub(in crate::store) oldest: i32,
    pub(in crate::store) supported: i32,
}

impl fmt::Display for VersionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            found,
            oldest,
            supported,
        } = self;
        write!(
            f,
            "the tables have version {found} for builds of version {oldest} or later, and this build has \
             version {supported}: "
        )?;
        match supported < oldest {
            true => write!(
                f,
                "`keyctl finish-upgrade` has ended their use by earlier builds, so use a later build"
            ),
            false => write!(f, "use a build of version {found}"),
        }
    }
}

impl std::error::Error for VersionFault {}

#[cfg(test)]
mod tests {
    use super::*;

    const fn tables(version: i32, oldest: i32) -> TablesVersion {
        TablesVersion { version, oldest }
    }

    #[test]
    fn a_build_uses_tables_from_its_own_version_on_until_the_upgrade_is_finished() {
        let cases = [
            (tables(1, 1), 1, true),
            (tables(2, 1), 1, true),
            (tables(2, 1), 2, true),
            (tables(2, 2), 1, false),
            (tables(3, 2), 1, false),
            (tables(3, 2), 2, true),
            // Tables before their upgrade.
            (tables(1, 1), 2, false),
        ];
        for (tables, build, accepted) in cases {
            assert_eq!(
                tables.check_build(build).is_ok(),
                accepted,
                "{tables:?} {build}"
            );
        }
        assert!(tables(VERSION + 1, VERSION).check_is_own().is_err());
    }

    #[test]
    fn the_error_names_both_versions_and_the_next_step() {
        let finished = tables(3, 2).fault(1).to_string();
        for part in [
            "version 3",
            "version 2",
            "version 1",
            "keyctl finish-upgrade",
        ] {
            assert!(finished.contains(part), "{finished}");
        }
        let behind = tables(1, 1).fault(2).to_string();
        assert!(behind.ends_with("use a build of version 1"), "{behind}");
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn one_number_holds_both_versions() {
        for tables in [
            tables(1, 1),
            tables(2, 1),
            tables(0xffff, 0x7fff),
            tables(1, 0),
        ] {
            assert_eq!(TablesVersion::unpacked(tables.packed()), tables);
        }
    }
}
