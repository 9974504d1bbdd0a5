//! `subject_key_folder`: the id of the folder that payloads are sealed from; one row.

use gatehouse_db::{Result, Tx, params, sql};
use uuid::Uuid;

sql! {
    /// The folder in use, if one was noted.
    pub(crate) FOLDER = "SELECT folder_id FROM subject_key_folder WHERE id = 1";
    /// Notes the folder, unless one was noted.
    pub(crate) NOTE_FOLDER = "INSERT INTO subject_key_folder (id, folder_id) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";
    /// Takes another folder in the place of exactly the one that was lost.
    pub(crate) REPLACE_FOLDER = "UPDATE subject_key_folder SET folder_id = $2 WHERE id = 1 AND folder_id = $1";
}

pub(crate) async fn lookup(tx: &mut Tx) -> Result<Option<Uuid>> {
    tx.fetch_optional(&FOLDER, params![]).await?.map(|row| row.get("folder_id")).transpose()
}

/// The folder that is noted afterwards: `folder`, or the one that another replica noted first.
pub(crate) async fn note(tx: &mut Tx, folder: Uuid) -> Result<Uuid> {
    tx.execute(&NOTE_FOLDER, params![folder]).await?;
    tx.fetch_one(&FOLDER, params![]).await?.get("folder_id")
}

/// Whether `lost` was the one in use, and `folder` is now.
pub(crate) async fn replace(tx: &mut Tx, lost: Uuid, folder: Uuid) -> Result<bool> {
    Ok(tx.execute(&REPLACE_FOLDER, params![lost, folder]).await? == 1)
}
