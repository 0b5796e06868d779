//! The version of a store's tables, and the rule that decides which builds may use them.
//!
//! An upgrade has two steps, so that nodes of the previous version continue while each node is replaced:
//!
//! 1. At its start, a new build adds what earlier builds ignore: tables, indexes, and columns that may be null. It
//!    raises `version` and keeps `oldest`. Until the second step, the build writes only what every build from `oldest` on
//!    can read.
//! 2. `finish_upgrade` of the new build raises `oldest`. Each transaction checks the versions, so earlier builds
//!    fail from their next transaction on.

use std::fmt;

use crate::store::tables_version;

/// The first step of the upgrade to one version: statements that add what earlier builds ignore.
struct Upgrade {
    to: i32,
    #[cfg(feature = "sqlite")]
    sqlite: &'static str,
    #[cfg(feature = "postgres")]
    postgres: &'static str,
}

/// The upgrades since version 1, in order. `schema.sql` stays as version 1 has it: new tables get the upgrades too,
/// so they equal upgraded ones.
const UPGRADES: &[Upgrade] = &[
    // A stand-in for the next version, for tests of a rolling upgrade.
    #[cfg(feature = "testing")]
    Upgrade {
        to: crate::store::TABLES_VERSION.cast_signed() + 1,
        #[cfg(feature = "sqlite")]
        sqlite: "ALTER TABLE rows ADD COLUMN later TEXT; CREATE TABLE later (id BLOB PRIMARY KEY) STRICT;",
        #[cfg(feature = "postgres")]
        postgres: "ALTER TABLE rows ADD COLUMN later text; CREATE TABLE later (id bytea PRIMARY KEY);",
    },
];

/// Returns the version of the tables that this build creates and writes.
pub(in crate::store) fn build_version() -> i32 {
    tables_version().cast_signed()
}

/// The versions that are stored with the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::store) struct TablesVersion {
    /// The version of the tables.
    pub(in crate::store) version: i32,
    /// The version of the oldest build that may use the tables.
    pub(in crate::store) oldest: i32,
}

impl TablesVersion {
    /// The versions of tables as `schema.sql` creates them.
    pub(in crate::store) const FIRST: Self = Self {
        version: 1,
        oldest: 1,
    };

    /// Returns the versions of new tables, and of tables whose upgrade is finished.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn own() -> Self {
        let own = build_version();
        Self {
            version: own,
            oldest: own,
        }
    }

    /// Returns whether a build may have written these versions.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn is_possible(self) -> bool {
        (0..=self.version).contains(&self.oldest)
    }

    /// Returns the statements of the first step of the upgrade to this build. Empty if the tables have it.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn sqlite_upgrade(self) -> String {
        self.upgrades().map(|upgrade| upgrade.sqlite).collect()
    }

    /// Returns the statements of [`sqlite_upgrade`](Self::sqlite_upgrade), for PostgreSQL.
    #[cfg(feature = "postgres")]
    pub(in crate::store) fn postgres_upgrade(self) -> String {
        self.upgrades().map(|upgrade| upgrade.postgres).collect()
    }

    fn upgrades(self) -> impl Iterator<Item = &'static Upgrade> {
        let missing = self.version + 1..=build_version();
        UPGRADES
            .iter()
            .filter(move |upgrade| missing.contains(&upgrade.to))
    }

    /// Returns the versions after the first step of the upgrade to this build. `None` if the tables have it, or
    /// are of a later build.
    pub(in crate::store) fn upgraded(self) -> Option<Self> {
        let version = build_version();
        // Tables of version 0 are damaged.
        let is_earlier = (1..version).contains(&self.version);
        is_earlier.then_some(Self { version, ..self })
    }

    /// Fails unless this build may use the tables, or may upgrade and then use them.
    pub(in crate::store) fn check_may_upgrade(self) -> Result<(), VersionFault> {
        self.upgraded().unwrap_or(self).check()
    }

    /// Fails unless this build may read and write the tables.
    pub(in crate::store) fn check(self) -> Result<(), VersionFault> {
        self.check_build(build_version())
    }

    /// Fails unless the tables have exactly the version of this build. An earlier build would leave out the
    /// columns and tables that a later build has added.
    pub(in crate::store) fn check_is_own(self) -> Result<(), VersionFault> {
        let own = build_version();
        match self.version == own {
            true => self.check(),
            false => Err(self.fault(own)),
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
        if supported < oldest {
            f.write_str("`keyctl finish-upgrade` has ended their use by earlier builds, so use a later build")
        } else if supported < found {
            write!(f, "use a build of version {found}")
        } else {
            f.write_str("restart this process, which upgrades them at its start")
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
        assert!(
            tables(build_version() + 1, build_version())
                .check_is_own()
                .is_err()
        );
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
        let ahead = tables(2, 1).fault(1).to_string();
        assert!(ahead.ends_with("use a build of version 2"), "{ahead}");
        let behind = tables(1, 1).fault(2).to_string();
        assert!(behind.contains("restart this process"), "{behind}");
    }

    #[test]
    fn the_first_step_of_an_upgrade_keeps_the_oldest_build() {
        let own = build_version();
        assert_eq!(tables(own, 1).upgraded(), None);
        assert_eq!(tables(own + 1, 1).upgraded(), None);
        assert!(tables(0, 0).check_may_upgrade().is_err(), "damaged tables");
        assert!(tables(own + 1, own).check_may_upgrade().is_ok());
        assert!(tables(own + 1, own + 1).check_may_upgrade().is_err());
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
