//! What an operator does to the tables: shed tombstones, put them in order after a restore.

use super::fault::Fault;
use super::head::{HEAD, Head};
use super::link::Tx;
use super::{nodes, schema};
use crate::core::view::Revision;
use crate::store::rows::{NodeRow, StoreRow, first_after, signed};

/// Drops the tombstones of commits at or below `upto`, and tells how many there were. Their ids stay
/// taken. The transaction is to be committed.
pub(super) async fn forget_removed(tx: &Tx<'_>, upto: Revision) -> Result<u64, Fault> {
    let head = Head::of(&tx.query(&format!("{HEAD} FOR UPDATE"), &[]).await?)?;
    let floor = upto.min(head.cursor.revision).max(head.floor);
    let end = first_after(floor);
    tx.execute(
        "INSERT INTO $s.gone (id) SELECT id FROM $s.rows WHERE kind = 3 AND place < $1 \
         ON CONFLICT DO NOTHING",
        &[&end],
    )
    .await?;
    let sql = "DELETE FROM $s.rows WHERE kind = 3 AND place < $1";
    let dropped = tx.execute(sql, &[&end]).await?;
    // The rest is needed by no cursor that would still be served.
    let sql = "DELETE FROM $s.commits WHERE revision < $1";
    tx.execute(sql, &[&signed(floor.0)?]).await?;
    let store = StoreRow {
        epoch: head.cursor.epoch.0,
        floor: floor.0,
        unrecovered: head.unrecovered,
    };
    write_store(tx, &store).await?;
    Ok(dropped)
}

/// Gives restored tables a history of their own, so that followers of the lost one are told that theirs
/// is gone, whatever the revisions say. The transaction is to be committed.
pub(super) async fn begin_anew(tx: &Tx<'_>) -> Result<(), Fault> {
    let head = Head::of(&tx.query(&format!("{HEAD} FOR UPDATE"), &[]).await?)?;
    let store = StoreRow {
        epoch: random(tx).await?,
        floor: head.cursor.revision.0,
        unrecovered: true,
    };
    write_store(tx, &store).await?;
    let longest = nodes::longest_lease(tx).await?;
    end_nodes(tx, longest).await
}

/// Puts one entry in the place of all nodes of a history that came to an end here.
pub(super) async fn end_nodes(tx: &Tx<'_>, longest: Option<i64>) -> Result<(), Fault> {
    tx.execute("DELETE FROM $s.nodes", &[]).await?;
    let former = NodeRow::former(random(tx).await?, longest)?;
    nodes::report(tx, &former.report()?).await.map(drop)
}

/// Marks restored tables as put right. The transaction is to be committed.
pub(super) async fn finish_recovery(tx: &Tx<'_>) -> Result<(), Fault> {
    let head = Head::of(&tx.query(&format!("{HEAD} FOR UPDATE"), &[]).await?)?;
    let store = StoreRow {
        epoch: head.cursor.epoch.0,
        floor: head.floor.0,
        unrecovered: false,
    };
    write_store(tx, &store).await
}

pub(super) async fn write_store(tx: &Tx<'_>, store: &StoreRow) -> Result<(), Fault> {
    let sql = "UPDATE $s.head SET epoch = $1, floor = $2, unrecovered = $3, store_seal = $4 \
               WHERE one = 1";
    let epoch = store.epoch.to_be_bytes();
    let (floor, seal) = (signed(store.floor)?, store.seal()?);
    tx.execute(sql, &[&&epoch[..], &floor, &store.unrecovered, &seal])
        .await
        .map(drop)
}

pub(super) async fn random(tx: &Tx<'_>) -> Result<u128, Fault> {
    let drawn = tx.query(schema::RANDOM, &[]).await?;
    let drawn = drawn.first();
    schema::bits(drawn.ok_or(Fault::Refused("the server drew no random number"))?)
}
