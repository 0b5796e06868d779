//! What an operator does to the tables: shed tombstones.

use super::fault::Fault;
use super::head::{HEAD, Head};
use super::link::Tx;
use crate::core::view::Revision;
use crate::store::rows::{StoreRow, first_after, signed};

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
    let sql = "UPDATE $s.head SET floor = $1, store_seal = $2 WHERE one = 1";
    tx.execute(sql, &[&signed(floor.0)?, &store.seal()?])
        .await?;
    Ok(dropped)
}
