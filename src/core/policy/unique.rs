//! Deserializes maps of a policy file, and refuses a name that appears twice.
//!
//! Without this check serde keeps the last of two entries with the same name, so the first of two definitions
//! of a role would silently have no effect.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

pub(super) fn deserialize<'de, D, K, V>(from: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Display,
    V: Deserialize<'de>,
{
    struct UniqueMapVisitor<K, V>(PhantomData<(K, V)>);

    impl<'de, K, V> Visitor<'de> for UniqueMapVisitor<K, V>
    where
        K: Deserialize<'de> + Ord + fmt::Display,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some(name) = map.next_key::<K>()? {
                match entries.entry(name) {
                    Entry::Vacant(vacant) => vacant.insert(map.next_value()?),
                    Entry::Occupied(first) => {
                        return Err(A::Error::custom(format_args!(
                            "`{}` is defined twice",
                            first.key()
                        )));
                    }
                };
            }
            Ok(entries)
        }
    }

    from.deserialize_map(UniqueMapVisitor(PhantomData))
}
