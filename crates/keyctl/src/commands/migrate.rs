//! Copying one kind of store into another.

use keyward::store::transfer::{self, Counts, Part, Progress, Step};
use serde_json::{Value, json};

use crate::args::{Common, MigrateStore};
use crate::failure::{Answer, Failure, Kind};
use crate::output::Output;
use crate::store::{self, Expected};

pub(crate) async fn run(common: &Common, asked: &MigrateStore, output: &Output) -> Answer<()> {
    let MigrateStore {
        from,
        to,
        to_schema,
    } = asked;
    let source = store::open_at(from, &common.schema, common, Expected::Existing).await?;
    let to_schema = to_schema.as_deref().unwrap_or(&common.schema);
    let checking = output.going_on(format!("checking {from}"));
    let report = source.check_integrity().await;
    drop(checking);
    if let Some(first) = report?.faults.first() {
        let words = format!("{from} is corrupt, and was not copied: {first}");
        return Err(Failure::new(Kind::Corrupt, words));
    }
    let target = store::open_at(to, to_schema, common, Expected::CopyTarget).await?;
    let mut line = output.steps();
    let progress = |at: Progress| line.step(&at.to_string(), is_last(&at));
    let copied = transfer::copy(source.source(), target.target(), transfer::PAGE, progress).await;
    drop(line);
    let copied = copied?;
    let revision = copied.head.revision;
    let mut words = format!(
        "copied {from} to {to} as of revision {revision}, and compared them. From now on they are two \
         stores: what is revoked in one works in the other. Let every node use the copy, with the pepper \
         that it used before, and set the other aside"
    );
    if copied.unrecovered {
        words += ". It opens only once `keyctl recover` has put it right, as its source would";
    }
    output.done(
        &words,
        &json!({
            "from": from.to_string(),
            "to": to.to_string(),
            "head": super::upkeep::cursor(&copied.head),
            "recovered": !copied.unrecovered,
            "copied": counts(&copied.counts),
        }),
    )
}

fn is_last(at: &Progress) -> bool {
    at.step == Step::Comparing && at.done >= at.total
}

fn counts(counts: &Counts) -> Value {
    let count = |part: Part| (part.to_string(), json!(counts.of(part)));
    Value::Object(Part::ALL.map(count).into_iter().collect())
}
