//! The certificate with which the dashboard is served on a LAN: self-signed, made by this node for
//! the configured addresses. No authority vouches for it: the person at the browser compares its
//! fingerprint with the one that `p2pvm dashboard` prints.
//!
//! One file, which only root can read, holds the certificate and its key. The node makes a new one
//! when the addresses change.

use crate::layout::{read_if_there, write_atomically};
use data_encoding::{BASE64, HEXUPPER};
use p2pvm_api::{Doing, Outcome};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use ring::digest;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::{net::IpAddr, path::Path, sync::Arc};
use tokio_rustls::TlsAcceptor;

/// A certificate, ready for use.
pub struct Certificate {
    der: Vec<u8>,
    acceptor: TlsAcceptor,
}

impl Certificate {
    /// Reads the certificate for these addresses, or makes it.
    pub fn open(file: &Path, addresses: &[IpAddr]) -> Outcome<Self> {
        let names: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        let kept = read_if_there(file)?.and_then(|bytes| parse(&bytes, &names));
        if let Some((der, key)) = kept
            && let Ok(known) = Self::of(der, key)
        {
            return Ok(known);
        }
        let (der, key) = make(&names).doing("making a certificate for the dashboard")?;
        let text = format!(
            "{}\n{}\n{}\n",
            names.join(" "),
            BASE64.encode(&der),
            BASE64.encode(&key)
        );
        write_atomically(file, text.as_bytes(), 0o600)?;
        Self::of(der, key).doing("using the dashboard's certificate")
    }

    fn of(der: Vec<u8>, key: Vec<u8>) -> Result<Self, rustls::Error> {
        let chain = vec![CertificateDer::from(der.clone())];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        // No client of the page is older than TLS 1.3.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut settings = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            der,
            acceptor: TlsAcceptor::from(Arc::new(settings)),
        })
    }

    /// Its SHA-256 fingerprint, as browsers show it.
    pub fn fingerprint(&self) -> String {
        let hash = digest::digest(&digest::SHA256, &self.der);
        let bytes: Vec<String> = hash
            .as_ref()
            .iter()
            .map(|b| HEXUPPER.encode(&[*b]))
            .collect();
        bytes.join(":")
    }

    /// What makes a TLS connection of an accepted one.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

/// The certificate and the key in a file, if they are for these names.
fn parse(bytes: &[u8], names: &[String]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut lines = std::str::from_utf8(bytes).ok()?.lines();
    if lines.next()? != names.join(" ") {
        return None;
    }
    let mut decoded = || BASE64.decode(lines.next()?.as_bytes()).ok();
    Some((decoded()?, decoded()?))
}

/// A new certificate for these names, and its key.
fn make(names: &[String]) -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    let name = DnType::CommonName;
    params.distinguished_name.push(name, "p2pvm dashboard");
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.der().to_vec(), key.serialize_der()))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rustls::{ClientConfig, RootCertStore};
    use std::os::unix::fs::PermissionsExt;
    use tokio_rustls::TlsConnector;

    /// What trusts this certificate alone.
    pub fn connector(certificate: &Certificate) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(certificate.der.clone()))
            .unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let settings = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(settings))
    }

    fn addresses(text: &[&str]) -> Vec<IpAddr> {
        text.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn it_is_kept_for_root_alone_until_the_addresses_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("certificate");
        let lan = addresses(&["192.168.1.10", "fd00::10"]);
        let first = Certificate::open(&file, &lan).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first.fingerprint().len(), 32 * 3 - 1);
        let again = Certificate::open(&file, &lan).unwrap();
        assert_eq!(again.fingerprint(), first.fingerprint());
        let moved = Certificate::open(&file, &addresses(&["192.168.1.11"])).unwrap();
        assert_ne!(moved.fingerprint(), first.fingerprint());
        std::fs::write(&file, "192.168.1.11\nAAAA\nAAAA\n").unwrap();
        let repaired = Certificate::open(&file, &addresses(&["192.168.1.11"])).unwrap();
        assert_ne!(repaired.fingerprint(), moved.fingerprint());
    }
}
