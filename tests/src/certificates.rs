//! A CA for one test, a server certificate for the loopback names, and a client certificate.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Paths of the PEM files of a CA, a server and a client.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The CA's certificate, which clients trust.
    pub ca: PathBuf,
    /// The server's private key (PKCS#8), its certificate and the CA's: a Kafka keystore of type PEM.
    pub server: PathBuf,
    /// The server's certificate alone.
    pub server_certificate: PathBuf,
    /// The server's private key alone.
    pub server_key: PathBuf,
    /// A client's certificate.
    pub client_certificate: PathBuf,
    /// The client's private key.
    pub client_key: PathBuf,
}

impl Certificates {
    /// Creates all of them and writes them into `folder`.
    ///
    /// # Errors
    /// If a key cannot be generated or a file cannot be written.
    pub fn make(folder: &Path) -> Result<Self> {
        let mut ca = CertificateParams::new(Vec::<String>::new())?;
        ca.distinguished_name.push(DnType::CommonName, "test CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let ca_key = KeyPair::generate()?;
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);

        let mut server =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        server
            .distinguished_name
            .push(DnType::CommonName, "localhost");
        let server_key = KeyPair::generate()?;
        let server_certificate = server.signed_by(&server_key, &issuer)?;

        let mut client = CertificateParams::new(Vec::<String>::new())?;
        client.distinguished_name.push(DnType::CommonName, "client");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client_key = KeyPair::generate()?;
        let client_certificate = client.signed_by(&client_key, &issuer)?;

        let files = Self {
            ca: folder.join("ca.pem"),
            server: folder.join("server.pem"),
            server_certificate: folder.join("server-certificate.pem"),
            server_key: folder.join("server-key.pem"),
            client_certificate: folder.join("client-certificate.pem"),
            client_key: folder.join("client-key.pem"),
        };
        std::fs::write(&files.server_certificate, server_certificate.pem())?;
        std::fs::write(&files.server_key, server_key.serialize_pem())?;
        std::fs::write(&files.client_certificate, client_certificate.pem())?;
        std::fs::write(&files.client_key, client_key.serialize_pem())?;
        std::fs::write(&files.ca, ca_certificate.pem())?;
        let chain = [
            server_key.serialize_pem(),
            server_certificate.pem(),
            ca_certificate.pem(),
        ]
        .concat();
        std::fs::write(&files.server, chain)?;
        Ok(files)
    }
}
