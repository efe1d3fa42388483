//! Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;

/// The identity of a service account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Who vouches for it.
    pub trust_domain: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// SPIFFE-ID §2.3: an identifier is at most 2048 bytes.
const MAX_URI: usize = 2048;

impl Identity {
    /// Out of its parts.
    ///
    /// # Errors
    /// When a part is empty or has a character that SPIFFE IDs may not have (SPIFFE-ID §2).
    pub fn new(domain: &str, namespace: &str, account: &str) -> Result<Self, String> {
        for (what, part) in [("namespace", namespace), ("service account", account)] {
            let spelt = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
            if part.is_empty() || part == "." || part == ".." || !part.bytes().all(spelt) {
                return Err(format!(
                    "{what} {part:?} must be letters, digits, '.', '-' and '_'"
                ));
            }
        }
        check_trust_domain(domain)?;
        let this = Self {
            trust_domain: domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
        };
        if this.to_string().len() > MAX_URI {
            return Err("identity is longer than 2048 bytes".into());
        }
        Ok(this)
    }

    /// Out of a URI of that form.
    ///
    /// # Errors
    /// When it has another form.
    pub fn parse(uri: &str) -> Result<Self, String> {
        let parts = uri.strip_prefix("spiffe://").and_then(|rest| {
            let (domain, path) = rest.split_once("/ns/")?;
            let (namespace, account) = path.split_once("/sa/")?;
            Some((domain, namespace, account))
        });
        let (domain, namespace, account) = parts
            .ok_or_else(|| format!("{uri:?} is not spiffe://<domain>/ns/<ns>/sa/<account>"))?;
        Self::new(domain, namespace, account)
    }
}

/// Whether `domain` can be a trust domain (SPIFFE-ID §2.1).
///
/// # Errors
/// What is wrong with it.
pub fn check_trust_domain(domain: &str) -> Result<(), String> {
    let spelt = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
    if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(spelt) {
        return Err(format!(
            "trust domain {domain:?} must be lower-case letters, digits, '.', '-' and '_'"
        ));
    }
    Ok(())
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_is_written() {
        let identity = Identity::new("td", "shop", "cart.v2").unwrap();
        assert_eq!(identity.to_string(), "spiffe://td/ns/shop/sa/cart.v2");
        assert_eq!(Identity::parse(&identity.to_string()), Ok(identity));
    }

    #[test]
    fn tl_09_what_is_not_exactly_an_identity_is_none() {
        for bad in [
            "",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://td/ns/shop",
            "spiffe://td/ns/shop/sa/",
            "spiffe://td/ns//sa/cart",
            "spiffe://td/ns/../sa/cart",
            "spiffe://td/ns/shop/sa/cart/admin",
            "spiffe://td/ns/shop/sa/cart%2f",
            "spiffe://td/x/ns/shop/sa/cart",
            "spiffe://TD/ns/shop/sa/cart",
            "SPIFFE://td/ns/shop/sa/cart",
            "https://td/ns/shop/sa/cart",
            "spiffe:///ns/shop/sa/cart",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
        let long = "a".repeat(MAX_URI);
        assert!(Identity::new("td", "shop", &long).is_err());
    }
}
