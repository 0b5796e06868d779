//! The commands, one file for each kind.

mod audit;
mod change;
mod import;
mod issue;
mod look;
mod migrate;
mod recover;
mod time;
mod upkeep;

use crate::args::{Ask, Cli, Time};
use crate::desk::Desk;
use crate::failure::{Answer, Failure, Kind};
use crate::output::Output;
use crate::store::{self, Expected};

pub(crate) async fn run(cli: Cli, output: &Output) -> Answer<()> {
    let Cli { mut common, ask } = cli;
    match ask {
        Ask::Init(named) => upkeep::init(common, &named, output).await,
        Ask::Backup { to } => upkeep::backup(&common, to, output).await,
        Ask::Restore { backup } => upkeep::restore(&common, &backup, output).await,
        Ask::BeginAnew => {
            // A store that still waits for recovery may be restored again.
            common.allow_unrecovered = true;
            upkeep::start_new_epoch(&common, output).await
        }
        Ask::MigrateStore(asked) => migrate::run(&common, &asked, output).await,
        Ask::Schema => output.line(store::schema_sql(&common)?.trim_end()),
        Ask::Check => upkeep::check(&common, output).await,
        Ask::Stats => upkeep::stats(&common, output).await,
        Ask::Recover(asked) => {
            // A store that opens normally is in use. Refuse, so that a slip does not disable its keys.
            common.allow_unrecovered = false;
            if store::open(&common, Expected::Existing).await.is_ok() {
                let words = format!("{} is not to be recovered", common.store);
                return Err(Failure::new(Kind::Refused, words));
            }
            // A store that waits for recovery opens only with this flag.
            common.allow_unrecovered = true;
            recover::run(&Desk::open(common).await?, &asked, output).await
        }
        ask => about_keys(&Desk::open(common).await?, ask, output).await,
    }
}

async fn about_keys(desk: &Desk, ask: Ask, output: &Output) -> Answer<()> {
    match ask {
        Ask::Create(asked) => issue::create(desk, asked, output).await,
        Ask::Rotate(asked) => issue::rotate(desk, &asked, output).await,
        Ask::List(asked) => look::list(desk, asked, output).await,
        Ask::Show { key } => look::show(desk, &key, output).await,
        Ask::Revoke(asked) => change::revoke(desk, &asked, output).await,
        Ask::Disable(asked) => change::disable(desk, &asked, output).await,
        Ask::Enable(asked) => change::enable(desk, &asked, output).await,
        Ask::Delete(asked) => change::delete(desk, asked, output).await,
        Ask::Audit(asked) => audit::run(desk, &asked, output).await,
        Ask::Import(asked) => import::run(desk, &asked, output).await,
        Ask::Time(Time::Repair(named)) => time::repair(desk, &named, output).await,
        Ask::Init(_)
        | Ask::Backup { .. }
        | Ask::Restore { .. }
        | Ask::Recover(_)
        | Ask::BeginAnew
        | Ask::MigrateStore(_)
        | Ask::Schema
        | Ask::Check
        | Ask::Stats => Ok(()),
    }
}
