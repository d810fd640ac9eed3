//! Which project a request is for: the server's own, or one that it names in the header `feast-project`
//! (gRPC: in its metadata) or, over HTTP, in the path: `/projects/NAME/push`. Feast's online messages have
//! no room for it. Every project has verbs of its own, so that nothing of two projects can meet.
//!
//! Knows no registry: a project that does not exist is refused by the verb, as ever.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use model::{Error, Result};

use crate::Online;
use crate::http::Failure;

/// The header, and the gRPC metadata, that names a project.
const HEADER: &str = "feast-project";

/// The faces of all projects.
#[derive(Clone)]
pub(crate) struct Projects {
    own: Arc<Online>,
    only: Option<Arc<BTreeSet<String>>>,
    /// Projects that were asked for and exist.
    others: Arc<RwLock<HashMap<String, Arc<Online>>>>,
}

impl Projects {
    /// `own` is for requests that name no project; others are served where they are in `only`, if it is given.
    pub(crate) fn new(own: Online, only: Option<BTreeSet<String>>) -> Self {
        Self { own: Arc::new(own), only: only.map(Arc::new), others: Arc::default() }
    }

    /// The limits, which all projects share.
    pub(crate) fn limits(&self) -> &crate::limits::Limits {
        &self.own.limits
    }

    /// The face that a request with these headers is for.
    ///
    /// Errors: a project that is not served here, a name that is no text.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<Arc<Online>> {
        match headers.get(HEADER) {
            None => Ok(self.own.clone()),
            Some(name) => self.named(name),
        }
    }

    #[cold]
    fn named(&self, name: &HeaderValue) -> Result<Arc<Online>> {
        let name = std::str::from_utf8(name.as_bytes())
            .map_err(|_| Error::invalid(format!("{HEADER}: the project's name is not UTF-8")))?;
        if name == self.own.retriever.project() {
            return Ok(self.own.clone());
        }
        if self.only.as_ref().is_some_and(|only| !only.contains(name)) {
            return Err(Error::project_not_found(name));
        }
        if let Some(known) = self.others.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(known.clone());
        }
        let made = Arc::new(self.own.of_project(name));
        if !made.retriever.has_project() {
            // The verb says so, or finds it when it reads the registry anew; a wrong name is not kept.
            return Ok(made);
        }
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        Ok(others.entry(name.to_owned()).or_insert(made).clone())
    }
}

/// The face of the request's project.
pub(crate) struct Face(pub(crate) Arc<Online>);

impl FromRequestParts<Projects> for Face {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, projects: &Projects) -> std::result::Result<Self, Failure> {
        projects.of(&parts.headers).map(Self).map_err(Failure)
    }
}

/// For routes under `/projects/{project}`: the path's project as if it stood in the header.
pub(crate) async fn in_path(
    Path(path): Path<HashMap<String, String>>,
    mut request: Request,
    next: Next,
) -> std::result::Result<Response, Failure> {
    let name = path.get("project").map_or("", String::as_str);
    let value = HeaderValue::from_str(name).or_else(|_| HeaderValue::from_bytes(name.as_bytes()));
    let value = value.map_err(|_| Failure(Error::project_not_found(name)))?;
    if request.headers().get(HEADER).is_some_and(|named| *named != value) {
        let message = format!("the path names the project {name} and the header {HEADER} another: name one");
        return Err(Failure(Error::invalid(message)));
    }
    request.headers_mut().insert(HEADER, value);
    Ok(next.run(request).await)
}
