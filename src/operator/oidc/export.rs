//! Both documents as files, for any static web host.
//!
//! The directory is the host's root, and holds as many issuers as the host has. Invariants: a key that is there stays there until
//! somebody says otherwise; a reader finds a whole document at any time, the old or the new one; who exports the same again writes
//! nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use http::Uri;
use serde::Serialize;
use serde_json::Value;

use super::{
    documents::{DISCOVERY, Discovery, KEYS, Key, KeySet},
    served::Served,
};

/// As what both are to be served.
pub const CONTENT_TYPE: &str = "application/json";
/// How long both may be kept: a new key is seen five minutes after it was published.
pub const CACHE_CONTROL: &str = "public, max-age=300";

/// What an export did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Whose documents they are.
    pub issuer: String,
    /// The files: the keys first, as they are best put on the host.
    pub files: Vec<Exportee>,
    /// Where the API server has the keys, if that is not below the issuer and was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewritten_jwks_uri: Option<String>,
    /// The keys that are there now.
    pub keys: Vec<ExportedKey>,
    /// Those that were taken out.
    pub dropped: Vec<String>,
}

/// A file of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exportee {
    /// Where it is.
    pub file: PathBuf,
    /// Where it is on the host, from its root and without a slash in front.
    pub path: String,
    /// Where it must be read.
    pub url: String,
    /// As what it must be served.
    pub content_type: &'static str,
    /// How long it may be kept.
    pub cache_control: &'static str,
    /// What was done.
    pub done: Done,
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// It was not there.
    New,
    /// It was another.
    Changed,
    /// It was the same.
    Unchanged,
}

/// A key of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedKey {
    /// Its kid.
    pub kid: String,
    /// In words.
    pub says: String,
    /// Whether an API server that was asked has it; else it is of an earlier export.
    pub of_cluster: bool,
}

/// Where the two documents of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    /// The issuer, without a slash at its end.
    issuer: String,
    /// The issuer's path on the host, as folders.
    folders: Vec<String>,
    /// That of the keys, below.
    keys: Vec<String>,
}

/// Writes both documents for the issuer that is named, or the cluster's.
///
/// # Errors
/// When what is there is not of the same issuer or cannot be read, or nothing can be written.
pub fn export(directory: &Path, served: &Served, issuer: Option<&str>, drop_old: bool) -> anyhow::Result<Exported> {
    let issuer = issuer.unwrap_or(&served.issuer);
    let layout = Layout::new(issuer, served.discovery.text("jwks_uri").unwrap_or_default())?;
    let files = Locked::new(directory)?;

    let discovery_path = layout.path(&DISCOVERY.split('/').map(str::to_owned).collect::<Vec<_>>());
    let earlier = Earlier::read(&files, issuer, &discovery_path, &layout)?;
    let mut keys = served.keys.clone();
    let dropped = if drop_old {
        earlier.keys.iter().filter(|key| !keys.has(key)).map(Key::to_string).collect()
    } else {
        // Two keys of one name: of one of them STS would refuse every token.
        let changed =
            earlier.keys.iter().find(|key| !keys.has(key) && keys.keys.iter().any(|one| one.has_name_of(key)));
        if let Some(key) = changed {
            bail!(
                "{}: has the key {key}, and the cluster another one of the same kid: STS could take tokens of one of them only. \
                 With --drop-old-keys the cluster's takes its place.",
                directory.display()
            );
        }
        keys.add(&KeySet { keys: earlier.keys });
        Vec::new()
    };
    ensure!(!keys.keys.is_empty(), "the API server has no keys");
    if let Some(key) = keys.keys.iter().find(|key| !key.secrets().is_empty()) {
        bail!(
            "the key {key} has its private part ({}) beside the public one: it is not written",
            key.secrets().join(", ")
        );
    }

    let jwks_uri = layout.url(&layout.keys);
    let discovery = discovery(&served.discovery, issuer, &jwks_uri);
    // A reader of the new discovery document must find the keys.
    let contents = [(layout.path(&layout.keys), keys.json()), (discovery_path, Value::Object(discovery.0))];
    let mut written = Vec::new();
    for (path, value) in contents {
        let text = format!("{}\n", serde_json::to_string_pretty(&value)?);
        let done = files.write(&path, text.as_bytes())?;
        written.push(Exportee {
            file: files.file(&path),
            url: layout.url(&path[layout.folders.len()..]),
            path: path.join("/"),
            content_type: CONTENT_TYPE,
            cache_control: CACHE_CONTROL,
            done,
        });
    }
    let had = served.discovery.text("jwks_uri").unwrap_or_default();
    let in_words = |key: &Key| ExportedKey {
        kid: key.id().unwrap_or_default().to_owned(),
        says: key.to_string(),
        of_cluster: served.keys.has(key),
    };
    Ok(Exported {
        issuer: issuer.to_owned(),
        files: written,
        rewritten_jwks_uri: (had != jwks_uri).then(|| had.to_owned()),
        keys: keys.keys.iter().map(in_words).collect(),
        dropped,
    })
}

/// The cluster's document with what the host's is to say.
fn discovery(served: &Discovery, issuer: &str, jwks_uri: &str) -> Discovery {
    let mut members = served.0.clone();
    members.insert("issuer".to_owned(), issuer.into());
    members.insert("jwks_uri".to_owned(), jwks_uri.into());
    Discovery(members)
}

// === impl Layout ===

impl Layout {
    fn new(issuer: &str, jwks_uri: &str) -> anyhow::Result<Self> {
        let uri = issuer.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
        let uri = uri.filter(|_| !issuer.contains(['?', '#']));
        let uri =
            uri.with_context(|| format!("the issuer {issuer}: is no https URL without query, to be a web host's"))?;
        let folders = segments(uri.path().trim_matches('/'))
            .with_context(|| format!("the issuer {issuer}: its path cannot be folders"))?;
        let issuer = issuer.trim_end_matches('/').to_owned();
        // Where the keys are below the issuer, they stay there; else whoever serves the issuer could not serve them.
        let below = jwks_uri.strip_prefix(&issuer).and_then(|path| path.strip_prefix('/'));
        let keys = below.and_then(segments).filter(|path| !path.is_empty() && !starts_with(path, DISCOVERY));
        let standard = || KEYS.split('/').map(str::to_owned).collect();
        Ok(Self { issuer, folders, keys: keys.unwrap_or_else(standard) })
    }

    fn path(&self, below: &[String]) -> Vec<String> {
        [self.folders.as_slice(), below].concat()
    }

    fn url(&self, below: &[String]) -> String {
        format!("{}/{}", self.issuer, below.join("/"))
    }

    /// Where a document says that the keys are, if that is below this issuer.
    fn keys_of(&self, discovery: &Discovery) -> Option<Vec<String>> {
        let below = discovery.text("jwks_uri")?.strip_prefix(&self.issuer)?.strip_prefix('/')?;
        segments(below).filter(|path| !path.is_empty())
    }
}

fn starts_with(path: &[String], prefix: &str) -> bool {
    prefix.split('/').zip(path).all(|(one, other)| one == other)
}

/// The folders of a path of a URL; `None` if a file system, or another reader of the URL, might make something else of it.
fn segments(path: &str) -> Option<Vec<String>> {
    let is_plain = |segment: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@+=,".contains(&byte);
        !segment.is_empty() && ![".", ".."].contains(&segment) && segment.bytes().all(plain)
    };
    let segments = path.split('/').filter(|_| !path.is_empty());
    segments.map(|segment| is_plain(segment).then(|| segment.to_owned())).collect()
}

/// What an earlier export left.
struct Earlier {
    keys: Vec<Key>,
}

impl Earlier {
    fn read(files: &Locked<'_>, issuer: &str, discovery: &[String], layout: &Layout) -> anyhow::Result<Self> {
        // All places where the keys are, and where they were when the document said so.
        let mut places = BTreeMap::from([(layout.path(&layout.keys), ())]);
        if let Some(text) = files.read(discovery)? {
            let at = files.file(discovery);
            let Ok(document) = Discovery::parse(&text) else {
                bail!("{}: is no discovery document; take it away if nothing reads it", at.display());
            };
            let of = document.text("issuer").unwrap_or_default();
            ensure!(of == issuer, "{}: is of the issuer {of}, not of {issuer}: name another directory", at.display());
            if let Some(keys) = layout.keys_of(&document) {
                places.insert(layout.path(&keys), ());
            }
        }
        let mut keys = KeySet::default();
        for place in places.keys() {
            if let Some(text) = files.read(place)? {
                let at = files.file(place);
                let read = KeySet::parse(&text).map_err(|why| {
                    anyhow::anyhow!(
                        "{}: {why}; the keys that it should hold would be lost: mend it or take it away",
                        at.display()
                    )
                })?;
                keys.add(&read);
            }
        }
        Ok(Self { keys: keys.keys })
    }
}

/// The directory, held so that no other export reads what this one is about to write.
struct Locked<'a> {
    directory: &'a Path,
    _lock: File,
}

impl<'a> Locked<'a> {
    fn new(directory: &'a Path) -> anyhow::Result<Self> {
        let said = || directory.display().to_string();
        fs::create_dir_all(directory).with_context(said)?;
        let lock = File::open(directory).with_context(said)?;
        lock.lock().with_context(said)?;
        Ok(Self { directory, _lock: lock })
    }

    fn file(&self, path: &[String]) -> PathBuf {
        path.iter().fold(self.directory.to_owned(), |file, segment| file.join(segment))
    }

    fn read(&self, path: &[String]) -> anyhow::Result<Option<String>> {
        let file = self.file(path);
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    /// Lets the file appear whole, or leaves it as it is.
    fn write(&self, path: &[String], contents: &[u8]) -> anyhow::Result<Done> {
        let file = self.file(path);
        let said = || file.display().to_string();
        let done = match self.read(path)? {
            Some(text) if text.as_bytes() == contents => return Ok(Done::Unchanged),
            Some(_) => Done::Changed,
            None => Done::New,
        };
        let (folder, name) = file.parent().zip(file.file_name()).context("no file's name")?;
        fs::create_dir_all(folder).with_context(said)?;
        // Always the same name: what a run that was cut off left is overwritten by the next.
        let new = folder.join(format!(".{}.new", name.to_string_lossy()));
        let write = || -> io::Result<()> {
            let mut open = File::create(&new)?;
            open.write_all(contents)?;
            open.sync_all()?;
            fs::rename(&new, &file)?;
            File::open(folder)?.sync_all()
        };
        if let Err(error) = write() {
            // The first error is the one to tell of.
            let _ = fs::remove_file(&new);
            return Err(error).with_context(said);
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
