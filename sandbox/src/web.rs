//! A web host of files: what is in a folder, as it is now, and nothing else.
//!
//! As those that people put an issuer's documents on: a bucket behind a CDN, a forge's pages. It lists no folder and follows no link,
//! and knows no more of a file than its bytes and the one type that it is told to serve all as.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use crate::http::{Body, full};

/// A web host. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Web(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    served: AtomicU64,
}

impl Web {
    /// Serves what is in `root`, whatever is put there later too.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Inner { root: root.into(), served: AtomicU64::new(0) }))
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// How many files were served.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.0.served.load(Ordering::Relaxed)
    }

    /// Answers a request.
    #[must_use]
    pub fn handle<B>(&self, request: &Request<B>) -> Response<Body> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        match self.read(request.uri().path()) {
            Ok(bytes) => {
                self.0.served.fetch_add(1, Ordering::Relaxed);
                let mut response = Response::new(full(bytes));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
                response
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => empty(StatusCode::FORBIDDEN),
            Err(_) => empty(StatusCode::NOT_FOUND),
        }
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let segments = path.strip_prefix('/').ok_or(io::ErrorKind::NotFound)?.split('/');
        let mut file = self.0.root.clone();
        for segment in segments {
            if ["", ".", ".."].contains(&segment) {
                return Err(io::ErrorKind::NotFound.into());
            }
            file.push(segment);
        }
        match fs::symlink_metadata(&file)?.is_file() {
            true => fs::read(file),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_served_as_they_are_now_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let web = Web::new(folder.path().join("root"));
        let status = |method: Method, path: &str| {
            web.handle(&Request::builder().method(method).uri(path).body(()).unwrap()).status().as_u16()
        };
        assert_eq!(status(Method::GET, "/a/b"), 404);
        fs::create_dir_all(folder.path().join("root/a")).unwrap();
        fs::write(folder.path().join("root/a/b"), "{}").unwrap();
        fs::write(folder.path().join("secret"), "").unwrap();
        symlink(folder.path().join("secret"), folder.path().join("root/link")).unwrap();
        assert_eq!(status(Method::GET, "/a/b"), 200);
        for path in ["/", "/a", "/a/", "/a//b", "/a/b/", "/../secret", "/a/../../secret", "/link", "/c"] {
            assert_eq!(status(Method::GET, path), 404, "{path}");
        }
        assert_eq!(status(Method::PUT, "/a/b"), 405);
        assert_eq!(web.served(), 1);
    }
}
