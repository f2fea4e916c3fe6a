//! The unfinished result: files that grow, a journal by which a killed run goes on, and the last step that
//! gives it its name.
//!
//! Everything lies in `NAME.partial` beside `NAME`: shards of their full length, a line that identifies the run, and
//! the journal, a line for every unit of work that is in the files, with a checksum. A line is written
//! only after the bytes that it speaks of were flushed, so what the journal has is there, also after a power cut.
//! A lock keeps a second run out.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use blake3::Hash;

use crate::error::{Error, io_at};
use crate::layout::{Layout, Piece};
use crate::lock::{LOCK, lock};

/// Bytes that are written between flushes.
const FLUSH_BYTES: u64 = 64 << 20;
const IDENTITY: &str = ".identity";
const JOURNAL: &str = ".journal";
/// Stands in the journal for the checksum of a unit that did not read back.
const TAKEN_BACK: &str = "-";
/// Where recorded rows lie.
const CALIBRATION: &str = ".calibration";
/// Where the widths of experts lie once they were chosen.
const WIDTHS: &str = ".widths.json";
/// Where the residual stream of a calibration layer by layer lies.
const STREAM: &str = ".stream";

/// The directory of an unfinished run.
#[derive(Debug)]
pub(crate) struct Partial {
    out: PathBuf,
    directory: PathBuf,
    /// Keeps other runs out.
    lock: File,
}

impl Partial {
    /// Begins a run, or goes on with one of the same identity.
    pub(crate) fn open(out: &Path, identity: &str) -> Result<Self, Error> {
        let Some(name) = out.file_name() else {
            return Err(Error::Exists { path: out.to_owned() });
        };
        if !is_free(out).map_err(io_at(out))? {
            return Err(Error::Exists { path: out.to_owned() });
        }
        let mut name = name.to_owned();
        name.push(".partial");
        let directory = out.with_file_name(name);
        fs::create_dir_all(&directory).map_err(io_at(&directory))?;
        let lock = lock(&directory)?;
        let identity_path = directory.join(IDENTITY);
        match fs::read_to_string(&identity_path) {
            Ok(found) if found == identity => {}
            Ok(_) => return Err(Error::OtherRun { path: directory }),
            // The name comes last: a file that is there is whole.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_whole(&identity_path, identity.as_bytes())?;
            }
            Err(error) => return Err(io_at(&identity_path)(error)),
        }
        Ok(Self { out: out.to_owned(), directory, lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn calibration(&self) -> PathBuf {
        self.directory.join(CALIBRATION)
    }

    pub(crate) fn widths(&self) -> PathBuf {
        self.directory.join(WIDTHS)
    }

    pub(crate) fn stream(&self) -> PathBuf {
        self.directory.join(STREAM)
    }

    /// Writes a file of the result.
    pub(crate) fn add(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        write_whole(&self.directory.join(name), contents)
    }

    /// Gives the result its name.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let Self { out, directory, lock } = self;
        let rows = directory.join(CALIBRATION);
        if rows.exists() {
            fs::remove_dir_all(&rows).map_err(io_at(&rows))?;
        }
        if out.exists() {
            fs::remove_dir(&out).map_err(io_at(&out))?;
        }
        // Windows renames no directory in which a file is open.
        let lock = (!cfg!(windows)).then_some(lock);
        fs::rename(&directory, &out).map_err(io_at(&out))?;
        // What a run goes on with is there as long as there is anything to go on with.
        for name in [JOURNAL, WIDTHS, STREAM, IDENTITY, LOCK] {
            let path = out.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_at(&path)(error));
                }
                _ => {}
            }
        }
        drop(lock);
        // So that the name is there after a power cut, where directories can be flushed.
        if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            drop(File::open(parent).and_then(|parent| parent.sync_all()));
        }
        Ok(())
    }
}

/// Whether a result can get this name: there is nothing, or an empty directory.
fn is_free(out: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(out) {
        Ok(metadata) if metadata.is_dir() => Ok(fs::read_dir(out)?.next().is_none()),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Writes a file under another name and then gives it its own.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_at(path))
}

/// The shards and the journal.
#[derive(Debug)]
pub(crate) struct Output {
    shards: Vec<Shard>,
    journal: (PathBuf, File),
    /// Checksums of the units that are in the files.
    done: HashMap<usize, Hash>,
    /// Lines of units that are written, but perhaps not flushed.
    pending: String,
    unflushed: u64,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    data_begin: u64,
}

impl Output {
    /// Opens the shards of a layout, with what an earlier run has left in them.
    pub(crate) fn open(partial: &Partial, layout: &Layout) -> Result<Self, Error> {
        let mut shards = Vec::new();
        for (index, name) in layout.names().into_iter().enumerate() {
            let path = partial.directory.join(name);
            let header = layout.header(index);
            let data_begin = header.len() as u64;
            let open = || {
                let mut options = OpenOptions::new();
                let mut file =
                    options.read(true).write(true).create(true).truncate(false).open(&path)?;
                file.write_all(&header)?;
                file.set_len(data_begin + layout.data_bytes(index))?;
                Ok(file)
            };
            let file = open().map_err(io_at(&path))?;
            shards.push(Shard { path, file, data_begin });
        }
        let path = partial.directory.join(JOURNAL);
        let open = || {
            let mut options = OpenOptions::new();
            let mut file = options.read(true).append(true).create(true).open(&path)?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            // A kill in the middle of a line leaves half of it.
            let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |index| index + 1);
            file.set_len(whole as u64)?;
            text.truncate(whole);
            Ok((file, text))
        };
        let (file, text) = open().map_err(io_at(&path))?;
        let text = String::from_utf8_lossy(&text);
        let mut done = HashMap::new();
        for (unit, hash) in text.lines().filter_map(|line| line.split_once(' ')) {
            let Ok(unit) = unit.parse() else { continue };
            // A later line counts; one without a checksum takes those before it back.
            match Hash::from_hex(hash) {
                Ok(hash) => done.insert(unit, hash),
                Err(_) => done.remove(&unit),
            };
        }
        let (pending, unflushed) = (String::new(), 0);
        Ok(Self { shards, journal: (path, file), done, pending, unflushed })
    }

    pub(crate) fn has(&self, unit: usize) -> bool {
        self.done.contains_key(&unit)
    }

    /// Writes the bytes of a unit, one piece after the other.
    pub(crate) fn write(
        &mut self,
        unit: usize,
        pieces: &[Piece],
        bytes: &[u8],
    ) -> Result<(), Error> {
        let mut begin = 0;
        for piece in pieces {
            let shard = &mut self.shards[piece.shard];
            let part = &bytes[begin..begin + piece.len as usize];
            let place = SeekFrom::Start(shard.data_begin + piece.offset);
            let written = shard.file.seek(place).and_then(|_| shard.file.write_all(part));
            written.map_err(io_at(&shard.path))?;
            begin += part.len();
        }
        assert_eq!(begin, bytes.len(), "a unit has the bytes that were planned for it");
        let hash = blake3::hash(bytes);
        self.pending += &format!("{unit} {hash}\n");
        self.done.insert(unit, hash);
        self.unflushed += bytes.len() as u64;
        if self.unflushed >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Flushes the shards, and then says in the journal what they have.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        for shard in &self.shards {
            shard.file.sync_data().map_err(io_at(&shard.path))?;
        }
        let (path, journal) = &mut self.journal;
        let written = journal.write_all(self.pending.as_bytes()).and_then(|()| journal.sync_data());
        written.map_err(io_at(path))?;
        self.pending.clear();
        self.unflushed = 0;
        Ok(())
    }

    /// Gives the pages that the system has of the shards back, so that what is read next comes from the drive.
    pub(crate) fn forget_pages(&self) {
        for shard in &self.shards {
            // Where the system has no such thing, what is compared comes from its cache.
            drop(engine::measure::evict_pages(&shard.path));
        }
    }

    /// The bytes of a unit that is written.
    pub(crate) fn read(&self, pieces: &[Piece]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        for piece in pieces {
            let shard = &self.shards[piece.shard];
            let begin = bytes.len();
            bytes.resize(begin + piece.len as usize, 0);
            // A file of its own: several threads read, and each moves its place.
            let read = File::open(&shard.path).and_then(|mut file| {
                file.seek(SeekFrom::Start(shard.data_begin + piece.offset))?;
                file.read_exact(&mut bytes[begin..])
            });
            read.map_err(io_at(&shard.path))?;
        }
        Ok(bytes)
    }

    /// Reads a unit and compares it with what was written. One that differs is made anew by the next run.
    pub(crate) fn verify(
        &mut self,
        unit: usize,
        name: &str,
        pieces: &[Piece],
    ) -> Result<(), Error> {
        let mut hasher = blake3::Hasher::new();
        let mut path = PathBuf::new();
        for piece in pieces {
            let shard = &mut self.shards[piece.shard];
            let mut bytes = vec![0; piece.len as usize];
            let place = SeekFrom::Start(shard.data_begin + piece.offset);
            let read = shard.file.seek(place).and_then(|_| shard.file.read_exact(&mut bytes));
            read.map_err(io_at(&shard.path))?;
            hasher.update(&bytes);
            path.clone_from(&shard.path);
        }
        if self.done.get(&unit) == Some(&hasher.finalize()) {
            return Ok(());
        }
        self.done.remove(&unit);
        self.pending += &format!("{unit} {TAKEN_BACK}\n");
        self.flush()?;
        Err(Error::Verify { path, tensor: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_says_what_was_flushed_and_damage_is_found() {
        let base = std::env::temp_dir().join(format!("flash-moe-journal-{}", std::process::id()));
        fs::create_dir_all(&base).expect("it can be made");
        let partial = Partial::open(&base.join("out"), "a run\n").expect("it can be begun");
        let mut layout = Layout::new(1 << 20);
        let pieces: Vec<Piece> =
            (0..3).map(|i| layout.tensor(format!("t{i}"), "U8", &[5], 5)).collect();
        let mut output = Output::open(&partial, &layout).expect("it opens");
        output.write(0, &pieces[..1], b"first").expect("it is written");
        output.flush().expect("it is flushed");
        // Not flushed, and so perhaps not there after a power cut.
        output.write(1, &pieces[1..2], b"other").expect("it is written");
        drop(output);
        let journal = partial.directory.join(JOURNAL);
        let mut file = OpenOptions::new().append(true).open(&journal).expect("it is there");
        file.write_all(b"2 0123").expect("half a line");
        drop(file);

        let second = Partial::open(&base.join("out"), "a run\n");
        assert!(matches!(second, Err(Error::InUse { .. })), "one run at a time: {second:?}");
        drop(partial);
        let partial = Partial::open(&base.join("out"), "a run\n").expect("it goes on");
        let mut output = Output::open(&partial, &layout).expect("it opens");
        assert_eq!([0, 1, 2].map(|unit| output.has(unit)), [true, false, false]);
        output.write(2, &pieces[2..], b"third").expect("it is written");
        output.flush().expect("it is flushed");
        output.verify(0, "t0", &pieces[..1]).expect("it reads back");
        output.verify(2, "t2", &pieces[2..]).expect("it reads back");
        let shard = &mut output.shards[0];
        shard.file.seek(SeekFrom::Start(shard.data_begin)).expect("there is such a place");
        shard.file.write_all(b"F").expect("it is written");
        let error = output.verify(0, "t0", &pieces[..1]).expect_err("a byte was changed");
        assert!(error.to_string().contains("t0 does not read back"), "{error}");
        drop(output);
        let output = Output::open(&partial, &layout).expect("it opens");
        assert_eq!([0, 2].map(|unit| output.has(unit)), [false, true], "it is to be made anew");
        drop((output, partial));
        let other = Partial::open(&base.join("out"), "another run\n");
        assert!(matches!(other, Err(Error::OtherRun { .. })));
        let nameless = Partial::open(&base.join(".."), "a run\n");
        assert!(matches!(nameless, Err(Error::Exists { .. })));
        fs::remove_dir_all(&base).expect("it can be removed");
    }
}
