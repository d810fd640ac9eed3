//! How failures of Arrow, DataFusion and files become [`model::Error`]s: the kind says what the
//! caller should do, the cause goes to the log only. Knows no status code.

use std::io::ErrorKind;
use std::path::Path;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use model::{Error, Kind};
use parquet::errors::ParquetError;

const SPILL_FULL: &str =
    "the disk that queries spill to is full: free space there, or ask for less; it can be tried again";

/// A query that failed: over the memory limit is `TooLarge`, data that cannot be cast is
/// `InvalidArgument`, the rest is our fault.
pub(crate) fn engine(error: DataFusionError) -> Error {
    if let Some(inner) = own(&error) {
        return inner;
    }
    if is_full(&error) {
        return Error::new(Kind::Unavailable, SPILL_FULL).with_cause(error);
    }
    match error.find_root() {
        DataFusionError::ResourcesExhausted(reason) => Error::new(
            Kind::TooLarge,
            format!(
                "the query needs more than others leave of the offline memory limit: ask for fewer rows or views, try \
                 again when fewer run, or raise the limit in larder.yaml ({})",
                first_line(reason)
            ),
        ),
        DataFusionError::ArrowError(inner, _) if is_data(inner) => Error::invalid(format!(
            "the source's data does not fit its registered types: {}",
            first_line(&inner.to_string())
        )),
        _ => match damage(&error) {
            Some(what) => Error::invalid(format!("a Parquet file of the source is damaged ({what}): write it anew")),
            None => Error::internal("the offline query failed", error),
        },
    }
}

/// A file of the spill directory that could not be written.
pub(crate) fn spill_full(error: Error) -> Error {
    if error.kind() == Kind::Unavailable { Error::new(Kind::Unavailable, SPILL_FULL).with_cause(error) } else { error }
}

/// What is wrong with the bytes of a Parquet file, if that is why a query failed.
pub(crate) fn damage(error: &DataFusionError) -> Option<String> {
    if own(error).is_some() {
        return None;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        let cut = |e: &std::io::Error| e.kind() == std::io::ErrorKind::UnexpectedEof;
        if let Some(found) = inner.downcast_ref::<ParquetError>() {
            match found {
                ParquetError::External(e) if !e.downcast_ref::<std::io::Error>().is_some_and(cut) => {}
                found => return Some(first_line(&found.to_string()).to_owned()),
            }
        }
        if let Some(ArrowError::ParquetError(found)) = inner.downcast_ref::<ArrowError>() {
            return Some(first_line(found).to_owned());
        }
        cause = inner.source();
    }
    None
}

/// A file whose footer or content cannot be understood, or our own error on the way to it.
pub(crate) fn damaged(name: &str, error: &ParquetError) -> Error {
    if let ParquetError::External(inner) = error
        && let Some(own) = inner.downcast_ref::<Error>()
    {
        return own.clone();
    }
    Error::invalid(format!(
        "{name} is no Parquet file, or a damaged one ({}): write it anew, or take it away",
        first_line(&error.to_string())
    ))
}

/// A failed query over SQL that the caller wrote: what cannot be planned is the caller's to mend.
pub(crate) fn sql(error: DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Execution(_)
        | DataFusionError::Diagnostic(..) => {
            Error::invalid(format!("the entity SQL cannot be run: {}", short(&error.strip_backtrace())))
        }
        // Of a damaged file there is more to say.
        DataFusionError::ArrowError(inner, _) if is_data(inner) || is_arithmetic(inner) => {
            Error::invalid(format!("the entity SQL cannot be run: {}", first_line(&inner.to_string())))
        }
        _ => engine(error),
    }
}

/// A failed Arrow kernel.
pub(crate) fn arrow(error: ArrowError) -> Error {
    if is_data(&error) {
        return Error::invalid(format!("a value does not fit its registered type: {}", first_line(&error.to_string())));
    }
    if is_full(&error) {
        return Error::new(Kind::Unavailable, format!("the disk is full: {}", first_line(&error.to_string())))
            .with_cause(error);
    }
    Error::internal("a column could not be computed", error)
}

/// A file that could not be read or written.
pub(crate) fn io(what: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = if is_full(&error) { Kind::Unavailable } else { Kind::Internal };
    Error::new(kind, format!("{what} {} failed: {error}", path.display())).with_cause(error)
}

/// A Parquet file that could not be read or written.
pub(crate) fn parquet(what: &str, path: &Path, error: ParquetError) -> Error {
    let kind = if is_full(&error) { Kind::Unavailable } else { Kind::Internal };
    let message = format!("{what} {} failed: {}", path.display(), first_line(&error.to_string()));
    Error::new(kind, message).with_cause(error)
}

/// Whether there is no room on a disk: no request can mend that, and it may be otherwise in a moment.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        let kind = inner.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)) {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// Our own error that went through DataFusion.
fn own(error: &DataFusionError) -> Option<Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(found) = inner.downcast_ref::<Error>() {
            return Some(found.clone());
        }
        cause = inner.source();
    }
    None
}

fn is_data(error: &ArrowError) -> bool {
    matches!(error, ArrowError::CastError(_) | ArrowError::ParseError(_) | ArrowError::ComputeError(_))
}

fn is_arithmetic(error: &ArrowError) -> bool {
    matches!(error, ArrowError::DivideByZero | ArrowError::ArithmeticOverflow(_) | ArrowError::InvalidArgumentError(_))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// An error text that fits into a gRPC trailer.
pub(crate) fn short(text: &str) -> String {
    const LIMIT: usize = 2000;
    if text.chars().count() <= LIMIT {
        text.to_owned()
    } else {
        text.chars().take(LIMIT).chain("…".chars()).collect()
    }
}
