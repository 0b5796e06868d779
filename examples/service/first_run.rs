//! The first run: creates an admin key and prints how to use it.

use std::fmt;
use std::io::Write;

use keyward::command::CommandId;
use keyward::{Actor, CommandError, CreateKey, Denial, Keyward, Role};

use crate::Fallible;

/// Commands to try in a terminal where `SERVICE` and `ADMIN_KEY` are set. Indented lines are commands.
const TRY: &str = include_str!("try.txt");

/// The place where keys are stored, and a verb for deleting this place, such as `drop` for a schema.
pub(crate) struct Kept {
    pub(crate) place: String,
    pub(crate) end: &'static str,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// Prints an admin key and how to use it, unless an earlier run did.
///
/// The command has a fixed id, so only one run creates the key, even if two runs are concurrent.
pub(crate) async fn welcome(keys: &Keyward, kept: &Kept, url: &str) -> Fallible<()> {
    let alice = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    let once = alice.with_command_id(CommandId::new("first-admin-key")?);
    // A key has its owner's role only if its scopes cover everything that the role allows.
    let admin = CreateKey::new("first admin key").scope("*:*");
    let mut out = std::io::stdout().lock();
    let end = kept.end;
    match keys.create(once, admin).await {
        Ok(created) => {
            let secret = created.secret.expose();
            writeln!(out, "Keys are kept in {kept}; {end} it to start over.\n")?;
            writeln!(
                out,
                "The admin key, shown this once. In another terminal:\n"
            )?;
            writeln!(out, "    export SERVICE={url}")?;
            writeln!(out, "    export ADMIN_KEY={secret}\n")?;
            writeln!(out, "{TRY}")?;
        }
        Err(CommandError::Denied(Denial::AlreadyCreated { id })) => {
            writeln!(
                out,
                "Keys are kept in {kept}. Its first run showed the admin key, {id}."
            )?;
            writeln!(out, "If it is lost, {end} {kept} to start over.\n")?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
