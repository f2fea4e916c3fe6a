//! The talk as it stands, written down as it changes.

use std::sync::Arc;

use anyhow::Context;
use chat::Message;

use crate::sessions::{Record, SessionError, SessionFile, Store, Talk};

/// A talk with its file, which begins with the first message.
pub struct Journal {
    talk: Talk,
    /// Where sessions are kept, if this talk shall be.
    store: Option<Arc<Store>>,
    file: Option<SessionFile>,
    trouble: Option<SessionError>,
    trial: Option<Trial>,
}

/// What is not certain until there is an answer, and not written down before.
struct Trial {
    /// Messages that stay in any case.
    kept: usize,
    /// What came after them.
    tail: Vec<Message>,
    records: Vec<Record>,
}

impl Journal {
    /// An empty talk.
    pub fn new(store: Option<Arc<Store>>) -> Self {
        Self { talk: Talk::default(), store, file: None, trouble: None, trial: None }
    }

    /// The talk.
    pub fn talk(&self) -> &Talk {
        &self.talk
    }

    /// The talk's file, once there is one.
    pub fn file(&self) -> Option<&SessionFile> {
        self.file.as_ref()
    }

    /// Whether the talk is written down, or will be once something is said.
    pub fn is_kept(&self) -> bool {
        self.store.is_some()
    }

    /// Goes on with a talk of the store, unless it is this one; the one before stays as it is.
    pub fn resume(&mut self, store: Option<&Store>, key: &str) -> anyhow::Result<()> {
        let store = store.context("this system has no directory for sessions")?;
        let id = store.find(key)?;
        if self.file.as_ref().is_some_and(|file| file.id() == id) {
            return Ok(());
        }
        let (file, talk) = store.resume(&id)?;
        self.talk = talk;
        self.file = self.store.is_some().then_some(file);
        Ok(())
    }

    /// Begins a talk anew, with the same model and system message.
    pub fn restart(&mut self) {
        let Talk { model, system, .. } = std::mem::take(&mut self.talk);
        self.talk = Talk { model, system, ..Talk::default() };
        self.file = None;
    }

    /// Adds a message.
    pub fn push(&mut self, message: Message) {
        if self.file.is_none()
            && let Some(store) = &self.store
        {
            match begin(store, &self.talk) {
                Ok(file) => self.file = Some(file),
                Err(error) => self.give_up(error),
            }
        }
        self.note(Record::Message { message });
    }

    /// Takes back all messages but the first ones.
    pub fn keep(&mut self, messages: usize) {
        self.note(Record::Keep { messages });
    }

    /// Takes back all messages but the first ones, if there will be an answer to what comes instead.
    pub fn try_after(&mut self, messages: usize) {
        let kept = messages.min(self.talk.messages.len());
        let tail = self.talk.messages.split_off(kept);
        let records = vec![Record::Keep { messages: kept }];
        self.trial = Some(Trial { kept, tail, records });
    }

    /// Brings back what was to be answered otherwise; tells whether there was such.
    pub fn give_back(&mut self) -> bool {
        let Some(Trial { kept, tail, .. }) = self.trial.take() else { return false };
        self.talk.messages.truncate(kept);
        self.talk.messages.extend(tail);
        true
    }

    /// Sets who answers.
    pub fn set_model(&mut self, name: &str) {
        if self.talk.model.as_deref() != Some(name) {
            self.note(Record::Model { name: name.to_owned() });
        }
    }

    /// Sets what the model is told to be.
    pub fn set_system(&mut self, text: Option<String>) {
        self.note(Record::System { text: text.filter(|text| !text.is_empty()) });
    }

    /// Names the talk.
    pub fn set_name(&mut self, name: &str) -> Result<(), SessionError> {
        crate::sessions::check_name(name)?;
        self.note(Record::Name { name: name.to_owned() });
        Ok(())
    }

    /// Why the talk is not kept any more, told once: a talk goes on without.
    pub fn take_trouble(&mut self) -> Option<SessionError> {
        self.trouble.take()
    }

    fn note(&mut self, record: Record) {
        let answers = matches!(&record, Record::Message { message } if message.role != "user");
        match &mut self.trial {
            Some(trial) => trial.records.push(record.clone()),
            None => self.write(&record),
        }
        // The program's own records make sense; what does not is not taken.
        drop(self.talk.apply(record));
        if answers && let Some(trial) = self.trial.take() {
            trial.records.iter().for_each(|record| self.write(record));
        }
    }

    fn write(&mut self, record: &Record) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.append(record)
        {
            self.give_up(error);
        }
    }

    /// Nothing more is written, so that what was written stays whole.
    fn give_up(&mut self, error: SessionError) {
        self.store = None;
        self.file = None;
        self.trouble = Some(error);
    }

    /// The messages for the model.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.talk.system.as_deref().map(Message::system);
        system.into_iter().chain(self.talk.messages.iter().cloned()).collect()
    }
}

/// A file of the store that tells a talk so far.
fn begin(store: &Store, talk: &Talk) -> Result<SessionFile, SessionError> {
    let mut file = store.create()?;
    let Talk { model, system, messages, name } = talk;
    let model = model.iter().map(|name| Record::Model { name: name.clone() });
    let system = [Record::System { text: system.clone() }];
    let messages = messages.iter().map(|message| Record::Message { message: message.clone() });
    let name = name.iter().map(|name| Record::Name { name: name.clone() });
    let mut records = model.chain(system).chain(messages).chain(name);
    records.try_for_each(|record| file.append(&record))?;
    Ok(file)
}
