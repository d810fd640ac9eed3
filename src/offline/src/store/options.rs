//! What object stores are told: region, endpoint, credentials. Values are never shown.

use std::collections::BTreeMap;
use std::fmt;

use model::{Error, Result};
use object_store::ClientConfigKey;
use object_store::aws::AmazonS3ConfigKey;
use object_store::gcp::GoogleConfigKey;

/// Options of object stores by the names that the crate `object_store` gives them: `aws_…` for S3,
/// `google_…` for Google Cloud Storage, others for any client (`connect_timeout`, `proxy_url`).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ObjectStoreOptions(BTreeMap<String, String>);

impl ObjectStoreOptions {
    /// Those of the environment (`AWS_…`, `GOOGLE_…`, as far as a store has them), under those configured.
    pub fn new(configured: &BTreeMap<String, String>, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let known = |name: &str| {
            (name.starts_with("aws_") && name.parse::<AmazonS3ConfigKey>().is_ok())
                || (name.starts_with("google_") && name.parse::<GoogleConfigKey>().is_ok())
        };
        let mut options: BTreeMap<String, String> = environment
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .filter(|(name, value)| known(name) && !value.is_empty())
            .collect();
        options.extend(configured.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        Self(options)
    }

    /// Errors: an option that no store has.
    pub(super) fn check(&self) -> Result<()> {
        let unknown = self.0.keys().find(|name| {
            name.parse::<ClientConfigKey>().is_err()
                && !(name.starts_with("aws_") && name.parse::<AmazonS3ConfigKey>().is_ok())
                && !(name.starts_with("google_") && name.parse::<GoogleConfigKey>().is_ok())
        });
        match unknown {
            None => Ok(()),
            Some(name) => Err(Error::invalid(format!(
                "offline.object_store: there is no option '{name}': use aws_access_key_id, aws_secret_access_key, \
                 aws_region, aws_endpoint_url, google_service_account and their like"
            ))),
        }
    }

    pub(super) fn s3(&self) -> impl Iterator<Item = (AmazonS3ConfigKey, &str)> {
        self.0
            .iter()
            .filter(|(name, _)| !name.starts_with("google_"))
            .filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str())))
    }

    pub(super) fn gcs(&self) -> impl Iterator<Item = (GoogleConfigKey, &str)> {
        self.0
            .iter()
            .filter(|(name, _)| !name.starts_with("aws_"))
            .filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str())))
    }

    /// Whether HTTP without TLS was asked for, outright or by the endpoint.
    pub(super) fn allows_http(&self) -> bool {
        let is = |name: &str, test: &dyn Fn(&str) -> bool| self.0.get(name).is_some_and(|v| test(v));
        let http = |v: &str| v.starts_with("http://");
        is("aws_allow_http", &|v| v.eq_ignore_ascii_case("true"))
            || is("allow_http", &|v| v.eq_ignore_ascii_case("true"))
            || ["aws_endpoint", "aws_endpoint_url", "aws_endpoint_url_s3"].iter().any(|name| is(name, &http))
    }

    /// A text without what is in the options and is not for everyone's eyes.
    pub(super) fn scrub(&self, text: &str) -> String {
        const SECRET: [&str; 7] = ["key", "token", "secret", "password", "account", "credential", "authorization"];
        let secret = self.0.iter().filter(|(name, value)| value.len() > 3 && SECRET.iter().any(|s| name.contains(s)));
        secret.fold(text.to_owned(), |text, (_, value)| text.replace(value.as_str(), "***"))
    }
}

impl fmt::Debug for ObjectStoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The names only.
        f.debug_set().entries(self.0.keys()).finish()
    }
}
