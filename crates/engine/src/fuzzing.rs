//! The parser of untrusted bytes, for the fuzz target alone.

use model::SavedShape;

use crate::prefix_cache::file::{header, parse};
use crate::prefix_cache::key::Key;
use crate::prefix_cache::{EntryId, Kind};

/// The file of an entry of a prefix cache. The first byte says whether the right header stands before the others and
/// whether the right checksum stands after them: few would get past those by chance.
pub fn prefix_entry(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let [has_header, is_sealed] = [mode & 1 == 1, mode & 2 == 2];
    let shape = SavedShape { n_parts: 3, part_bytes: 20 };
    let (identity, key, kind) = (Key([1; 32]), Key([2; 32]), Kind::Recurrent);
    let id = EntryId { key, kind };
    let mut file = Vec::new();
    if has_header {
        file.extend(header(&identity, id, shape));
    }
    file.extend(bytes);
    if is_sealed {
        let checksum = blake3::hash(&file);
        file.extend(checksum.as_bytes());
    }
    let parts = parse(&mut &file[..], file.len() as u64, &identity, id, shape);
    if has_header && is_sealed {
        let is_whole = bytes.len() as u64 == shape.bytes();
        assert_eq!(parts.is_ok(), is_whole, "{parts:?}");
    }
    if let Ok(parts) = parts {
        let whole = [&header(&identity, id, shape)[..], &parts.concat()].concat();
        assert_eq!(file, [&whole[..], blake3::hash(&whole).as_bytes()].concat());
    }
}
