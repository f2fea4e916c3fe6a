//! Text to calibrate with: read and checked before anything else is done, and known by what it says.
//!
//! A run that goes on, and rows that were recorded for several runs, hang on the text itself and not on the name of
//! its file: a file that was changed meanwhile is another text.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, io_at};

/// Text to calibrate with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalibrationText {
    /// What the model itself writes.
    Sampled,
    /// A file: plain text, or lines of JSON with `text`, or with `segments` as pairs of text and class.
    File(PathBuf),
}

/// A text that was read.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    /// What the model itself is yet to write.
    Sampled,
    /// The documents of a file.
    Documents { path: PathBuf, documents: Vec<String> },
}

/// Reads the files; one that cannot be used is named, with the line.
pub(crate) fn read_texts(texts: &[CalibrationText]) -> Result<Vec<Text>, Error> {
    let read = |text: &CalibrationText| match text {
        CalibrationText::Sampled => Ok(Text::Sampled),
        CalibrationText::File(path) => {
            Ok(Text::Documents { path: path.clone(), documents: read_documents(path)? })
        }
    };
    texts.iter().map(read).collect()
}

/// What texts are known by: all that they say.
pub(crate) fn fingerprint(texts: &[Text]) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for text in texts {
        match text {
            Text::Sampled => add(b"sampled"),
            Text::Documents { documents, .. } => {
                add(format!("{} documents", documents.len()).as_bytes());
                documents.iter().for_each(|document| add(document.as_bytes()));
            }
        }
    }
    hasher.finalize().to_string()
}

fn read_documents(path: &Path) -> Result<Vec<String>, Error> {
    let bad = |what: String| Error::Calibration { path: path.to_owned(), what };
    let bytes = fs::read(path).map_err(io_at(path))?;
    let text = str::from_utf8(&bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|&byte| byte == b'\n').count();
        bad(format!("line {line} is not UTF-8"))
    })?;
    // Some editors begin a file with a mark that is no part of its text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl")) {
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let document = document_of_line(line);
            documents.push(document.map_err(|what| bad(format!("line {}: {what}", index + 1)))?);
        }
    } else {
        documents.push(text.to_owned());
    }
    if documents.iter().all(|document| document.trim().is_empty()) {
        return Err(bad("it has no text".to_owned()));
    }
    Ok(documents)
}

fn document_of_line(line: &str) -> Result<String, String> {
    let line: Value = serde_json::from_str(line)
        .map_err(|error| error.to_string().replace(" at line 1 column", " at column"))?;
    match (&line["text"], &line["segments"]) {
        (Value::String(text), _) => Ok(text.clone()),
        (_, Value::Array(segments)) => {
            let texts = segments.iter().map(|segment| segment[0].as_str());
            let texts: Option<Vec<&str>> = texts.collect();
            Ok(texts.ok_or("segments that do not begin with text")?.concat())
        }
        _ => Err("neither text nor segments".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_a_text_are_named_with_their_line() {
        let base = std::env::temp_dir().join(format!("flash-moe-text-{}", std::process::id()));
        fs::create_dir_all(&base).expect("it can be made");
        let path = base.join("text.jsonl");
        let read = |contents: &[u8]| {
            fs::write(&path, contents).expect("it can be written");
            read_documents(&path).map_err(|error| error.to_string())
        };
        let documents =
            read(b"\xef\xbb\xbf{\"text\": \"a\"}\n\n{\"segments\": [[\"b\", 1], [\"c\", 0]]}\n");
        assert_eq!(documents.expect("it is sound"), ["a", "bc"]);
        let fault = |contents: &[u8]| {
            let message = read(contents).expect_err("it is not sound");
            assert!(message.contains("text.jsonl: "), "{message}");
            message.split_once("jsonl: ").expect("it is named").1.to_owned()
        };
        assert_eq!(
            fault(b"{\"text\": \"a\"}\n{\"text\": \"b\"\n"),
            "line 2: EOF while parsing an object at column 12"
        );
        assert_eq!(fault(b"{\"text\": \"a\"}\n\n[1]\n"), "line 3: neither text nor segments");
        assert_eq!(fault(b"{\"segments\": [1]}"), "line 1: segments that do not begin with text");
        assert_eq!(fault(b"{\"text\": \"a\"}\n\xff"), "line 2 is not UTF-8");
        assert_eq!(fault(b"\n"), "it has no text");
        fs::remove_dir_all(&base).expect("it can be removed");
    }

    #[test]
    fn texts_are_known_by_what_they_say() {
        let of = |documents: &[&str]| {
            let documents = documents.iter().map(|text| (*text).to_owned()).collect();
            fingerprint(&[Text::Documents { path: PathBuf::new(), documents }])
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(fingerprint(&[Text::Sampled]), fingerprint(&[]));
    }
}
