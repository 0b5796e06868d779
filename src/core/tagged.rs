//! Enums whose JSON form differs from their stored form.
//!
//! Pure: no I/O and no clock. In JSON, a tag field names the variant. Stores use postcard, which cannot read
//! an enum with a tag field back, so a stored variant is its index and its fields. The index is part of the
//! stored format: append variants, and never reorder them. `src/core/golden/actions.v1` pins the indexes.

/// Declares an enum of struct and unit variants, and implements serde for it in both forms.
macro_rules! tagged {
    (
        $($key:ident = $value:tt),+;
        $(#[$about:meta])*
        pub enum $name:ident {
            $(
                $(#[$of_variant:meta])*
                $variant:ident $({ $($(#[$of_field:meta])* $field:ident: $type:ty,)* })?,
            )*
        }
    ) => {
        $(#[$about])*
        pub enum $name {
            $($(#[$of_variant])* $variant $({ $($(#[$of_field])* $field: $type,)* })?,)*
        }

        const _: () = {
            type This = $name;

            #[derive(serde::Deserialize, serde::Serialize)]
            #[serde(remote = "This", rename_all = "snake_case", $($key = $value),+)]
            enum Json {
                $($variant $({ $($field: $type,)* })?,)*
            }

            #[derive(serde::Deserialize, serde::Serialize)]
            #[serde(remote = "This")]
            enum Stored {
                $($variant $({ $($field: $type,)* })?,)*
            }

            impl serde::Serialize for $name {
                fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                    if to.is_human_readable() {
                        Json::serialize(self, to)
                    } else {
                        Stored::serialize(self, to)
                    }
                }
            }

            impl<'de> serde::Deserialize<'de> for $name {
                fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                    if from.is_human_readable() {
                        Json::deserialize(from)
                    } else {
                        Stored::deserialize(from)
                    }
                }
            }
        };
    };
}

pub(super) use tagged;
