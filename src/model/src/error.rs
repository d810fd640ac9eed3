//! What can go wrong, told by what the caller should do about it ([`Kind`]), with the class that a
//! Feast client rebuilds the exception from. Knows no status code: only `rpc` turns a kind into one.
//!
//! Source of classes and wording: `feast/errors.py`.

use std::fmt;
use std::sync::Arc;

/// The result of anything that can fail with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Fix the request: it is malformed or contradicts the registry.
    InvalidArgument,
    /// Name something that exists.
    NotFound,
    /// The state forbids it now (a conflicting object, a job that runs): resolve that first.
    Conflict,
    /// Say who you are.
    Unauthenticated,
    /// Ask for the permission.
    PermissionDenied,
    /// Send less.
    TooLarge,
    /// Come back in a moment: too much is asked at once.
    TooMany,
    /// Send faster.
    TooSlow,
    /// Do not ask for this here: Larder or the configuration does not offer it.
    Unsupported,
    /// Try again later.
    Unavailable,
    /// Our fault: it is logged with its cause.
    Internal,
}

impl Kind {
    /// The kind as a metric label or log field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::TooSlow => "too_slow",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// An error as the caller sees it.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    class: &'static str,
    message: String,
    limit: Option<&'static str>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that a Feast client sees as a plain `FeastError`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self::of_class(kind, "FeastError", message)
    }

    /// An error that a Feast client sees as `feast.errors.<class>`.
    pub fn of_class(kind: Kind, class: &'static str, message: impl Into<String>) -> Self {
        Self { kind, class, message: message.into(), limit: None, cause: None }
    }

    /// The request must be mended.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// A limit of the configuration is passed: what happened, the limit's name there, what to do.
    pub fn over_limit(kind: Kind, limit: &'static str, what: impl fmt::Display, advice: &str) -> Self {
        let mut error = Self::new(kind, format!("{what} (limits.{limit}): {advice}"));
        error.limit = Some(limit);
        error
    }

    /// Our fault, with its cause.
    pub fn internal(message: impl Into<String>, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::new(Kind::Internal, message).with_cause(cause)
    }

    /// Attaches what caused it: for the log, never for the caller.
    #[must_use]
    pub fn with_cause(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// What the caller should do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The class in `feast.errors` that a Feast client raises.
    pub fn class(&self) -> &'static str {
        self.class
    }

    /// The name of the limit that is passed.
    pub fn limit(&self) -> Option<&'static str> {
        self.limit
    }

    /// What happened, for the caller.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The error detail from which a Feast client rebuilds its exception
    /// (`FeastError.to_error_detail` in `feast/errors.py`). Of a very long message (a name in it may have
    /// megabytes) it has the beginning and the end: gRPC sends it in a header, and clients refuse great headers.
    pub fn detail(&self) -> String {
        let message = shortened(&self.message);
        serde_json::json!({ "module": "feast.errors", "class": self.class, "message": message }).to_string()
    }
}

/// A message whose parts have at most these bytes in a gRPC header, where some characters take more than one.
fn shortened(message: &str) -> std::borrow::Cow<'_, str> {
    const HEAD: usize = 4500;
    const TAIL: usize = 1500;
    // JSON escapes control characters and quotes; percent-encoding makes three bytes of one.
    let bytes = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' | ',' | ':' | '/' | '\'' | '(' | ')' => 1,
        ' ' => 3,
        '!'..='~' => 6,
        c if c.is_ascii() => 8,
        c => 3 * c.len_utf8(),
    };
    // The least text comes to these bytes at once.
    if message.len() <= (HEAD + TAIL) / 8 {
        return message.into();
    }
    let within = |most: usize| {
        let mut sum = 0;
        move |(_, c): &(usize, char)| {
            sum += bytes(*c);
            sum <= most
        }
    };
    if message.char_indices().take_while(within(HEAD + TAIL)).count() == message.chars().count() {
        return message.into();
    }
    let head = message.char_indices().take_while(within(HEAD)).last().map_or(0, |(at, c)| at + c.len_utf8());
    let tail = message.char_indices().rev().take_while(within(TAIL)).last().map_or(message.len(), |(at, _)| at);
    let left_out = tail - head;
    format!("{} … {left_out} bytes are left out … {}", &message[..head], &message[tail..]).into()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|c| c as &(dyn std::error::Error + 'static))
    }
}

/// Feast's own "does not exist" errors, worded as Feast words them.
impl Error {
    /// `EntityNotFoundException`.
    pub fn entity_not_found(name: &str, project: &str) -> Self {
        Self::missing("EntityNotFoundException", "Entity", name, project)
    }

    /// `FeatureViewNotFoundException`.
    pub fn feature_view_not_found(name: &str, project: &str) -> Self {
        Self::missing("FeatureViewNotFoundException", "Feature view", name, project)
    }

    /// In the words of Feast, which has no class for it (`_get_feature_views_to_use` in `feast/utils.py`).
    pub fn feature_view_disabled(name: &str) -> Self {
        let what = format!("Feature view '{name}' is disabled and cannot serve features. ");
        let then = format!("Enable it with `feast feature-views enable {name}` or set enabled=True.");
        Self::new(Kind::Conflict, what + &then)
    }

    /// `FeatureServiceNotFoundException`.
    pub fn feature_service_not_found(name: &str, project: &str) -> Self {
        Self::missing("FeatureServiceNotFoundException", "Feature service", name, project)
    }

    /// `DataSourceObjectNotFoundException`.
    pub fn data_source_not_found(name: &str, project: &str) -> Self {
        Self::missing("DataSourceObjectNotFoundException", "Data source", name, project)
    }

    /// `SavedDatasetNotFound`.
    pub fn saved_dataset_not_found(name: &str, project: &str) -> Self {
        Self::missing("SavedDatasetNotFound", "Saved dataset", name, project)
    }

    /// `ValidationReferenceNotFound`.
    pub fn validation_reference_not_found(name: &str, project: &str) -> Self {
        Self::missing("ValidationReferenceNotFound", "Validation reference", name, project)
    }

    /// `PermissionObjectNotFoundException`.
    pub fn permission_not_found(name: &str, project: &str) -> Self {
        Self::missing("PermissionObjectNotFoundException", "Permission", name, project)
    }

    /// `ProjectObjectNotFoundException`.
    pub fn project_not_found(name: &str) -> Self {
        Self::of_class(Kind::NotFound, "ProjectObjectNotFoundException", format!("Project {name} does not exist"))
    }

    /// `PushSourceNotFoundException`: the caller's mistake (Feast's server answers 422).
    pub fn push_source_not_found(name: &str) -> Self {
        Self::of_class(
            Kind::InvalidArgument,
            "PushSourceNotFoundException",
            format!("Unable to find push source '{name}'."),
        )
    }

    /// `FeatureNameCollisionError`.
    pub fn feature_name_collision(refs: &[String], full_feature_names: bool) -> Self {
        let mut names: Vec<String> = refs
            .iter()
            .map(|r| if full_feature_names { r.replace(':', "__") } else { r.split(':').nth(1).unwrap_or(r).into() })
            .collect();
        names.sort();
        names.dedup();
        let advice = if full_feature_names {
            "To resolve this collision, please ensure that the feature views or their own features have different \
             names. If you're intentionally joining the same feature view twice on different sets of entities, please \
             rename one of the feature views with '.with_name'."
        } else {
            "To resolve this collision, either use the full feature name by setting 'full_feature_names=True', or \
             ensure that the features in question have different names."
        };
        let message = format!("Duplicate features named {} found.\n{advice}", names.join(", "));
        Self::of_class(Kind::InvalidArgument, "FeatureNameCollisionError", message)
    }

    fn missing(class: &'static str, what: &str, name: &str, project: &str) -> Self {
        Self::of_class(Kind::NotFound, class, format!("{what} {name} does not exist in project {project}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        let usual = "Feature view x does not exist in project demo. ".repeat(60);
        assert_eq!(shortened(&usual), usual);
        for letter in ["x", "é", "\0", "\"", "\u{1f600}"] {
            let message = format!("Feature {} does not exist", letter.repeat(1_000_000));
            let short = shortened(&message);
            assert!(short.starts_with("Feature ") && short.ends_with("does not exist"), "{short}");
            let parts: Vec<&str> = short.split(" bytes are left out").collect();
            let left_out: usize = parts[0].rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
            let note = format!(" … {left_out} bytes are left out … ");
            assert_eq!(short.len() - note.len() + left_out, message.len());
            assert!(short.len() < 7000, "{}", short.len());
        }
    }
}
