//! A certificate authority made for one test, and a server certificate that it signed for the loopback names.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Where the files of an authority and its one server certificate stand, all PEM.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate: what clients trust.
    pub authority: PathBuf,
    /// The server's private key (PKCS#8), its certificate and the authority's: a Kafka keystore of type PEM.
    pub server: PathBuf,
}

impl Certificates {
    /// Makes both and writes them into `folder`.
    ///
    /// # Errors
    /// If a key cannot be made or a file cannot be written.
    pub fn make(folder: &Path) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let authority_key = KeyPair::generate()?;
        let authority_certificate = authority.self_signed(&authority_key)?;
        let issuer = Issuer::new(authority, authority_key);

        let mut server =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        server
            .distinguished_name
            .push(DnType::CommonName, "localhost");
        let server_key = KeyPair::generate()?;
        let server_certificate = server.signed_by(&server_key, &issuer)?;

        let files = Self {
            authority: folder.join("authority.pem"),
            server: folder.join("server.pem"),
        };
        std::fs::write(&files.authority, authority_certificate.pem())?;
        let chain = [
            server_key.serialize_pem(),
            server_certificate.pem(),
            authority_certificate.pem(),
        ]
        .concat();
        std::fs::write(&files.server, chain)?;
        Ok(files)
    }
}
