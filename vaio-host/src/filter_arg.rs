//! What a user writes to name a filter: `NAME[:KEY=VALUE,...]`. Pure.
//!
//! A value that holds a comma goes into a policy file; everything else after the first `=` is the
//! value as it stands, so that paths and URIs need no quoting.

use vaio_core::{Error, FilterRegistry, FilterSpec, Policy, Resolved, Result, Settings};

/// The word that stands for no filter at all.
pub(crate) const NONE: &str = "none";

/// Reads `NAME[:KEY=VALUE,...]`.
///
/// # Errors
/// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) for an empty name, a key without a value,
/// or a key given twice.
pub(crate) fn parse(text: &str) -> Result<FilterSpec> {
    let (name, settings) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() {
        return Err(Error::config(format!(
            "a filter has a name: write NAME or NAME:KEY=VALUE,..., filter={text:?}"
        )));
    }
    let mut spec = FilterSpec::new(name);
    for pair in settings.split(',').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::config(format!(
                "a setting has a value: write KEY=VALUE, setting={pair}"
            ))
            .with_filter(name));
        };
        if spec.settings.insert(key.into(), value.into()).is_some() {
            return Err(
                Error::config(format!("setting is given twice, setting={key}")).with_filter(name),
            );
        }
    }
    Ok(spec)
}

/// Checks a policy against the registry, opening nothing: names, settings, and the stack.
///
/// # Errors
/// As [`Policy::resolve`] and [`Settings::parse`].
pub(crate) fn check(policy: &Policy, registry: &FilterRegistry) -> Result<Vec<Resolved>> {
    let resolved = policy.resolve(registry)?;
    for one in &resolved {
        Settings::parse(one.descriptor.settings, &one.spec.settings)
            .map_err(|error| error.with_filter(one.descriptor.name))?;
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_settings_are_read() {
        assert_eq!(parse("audit").unwrap(), FilterSpec::new("audit"));
        assert_eq!(
            parse("replica:target=nbd+unix:///x?socket=/s,lag=30s").unwrap(),
            FilterSpec::new("replica")
                .with("target", "nbd+unix:///x?socket=/s")
                .with("lag", "30s")
        );
        assert_eq!(parse("a:b=").unwrap(), FilterSpec::new("a").with("b", ""));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("", "name"),
            (":a=b", "name"),
            ("throttle:iops", "setting=iops filter=throttle"),
            ("throttle:iops=1,iops=2", "twice"),
        ] {
            let line = parse(text).unwrap_err().to_line();
            assert!(line.contains(words), "{text}: {line}");
        }
    }

    #[test]
    fn unknown_filter_is_refused_with_those_that_exist() {
        let policy = Policy::empty().with(FilterSpec::new("frobnicate"));
        let error = check(&policy, &FilterRegistry::default()).unwrap_err();
        assert!(error.to_line().contains("filter=frobnicate known=none"));
    }
}
