//! The properties files of a test's KRaft nodes.

use std::fmt::Write as _;
use std::path::Path;

use super::{KafkaOptions, PASSWORD, Ports, USER};
use crate::certificates::Certificates;

/// Logs warnings and the progress of the node's start to standard output.
pub(super) const LOG4J2: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="[%d] %p %m (%c)%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Root level="WARN"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"#;

/// The text of node `id`'s `server.properties`; `all` contains the ports of all nodes in the order of their ids.
pub(super) fn server(
    id: u16,
    all: &[Ports],
    options: &KafkaOptions,
    home: &Path,
    certificates: Option<&Certificates>,
) -> String {
    let own = all[usize::from(id) - 1];
    let voters = (1..)
        .zip(all)
        .map(|(voter, ports): (u16, _)| format!("{voter}@127.0.0.1:{}", ports.controller))
        .collect::<Vec<_>>()
        .join(",");
    let replicas = all.len().min(3);
    let mut listeners = format!("PLAINTEXT://127.0.0.1:{}", own.plain);
    let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
    if options.secured {
        let _ = write!(
            listeners,
            ",LOGIN://127.0.0.1:{},SECURE://localhost:{}",
            own.login, own.secure
        );
        protocols.push_str(",LOGIN:SASL_PLAINTEXT,SECURE:SASL_SSL");
    }
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id={id}\n\
         controller.quorum.voters={voters}\n\
         listeners={listeners},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners={listeners}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map={protocols}\n\
         log.dirs={data}\n\
         offsets.topic.replication.factor={replicas}\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor={replicas}\n\
         transaction.state.log.min.isr={in_sync}\n\
         transaction.state.log.num.partitions=4\n\
         share.coordinator.state.topic.replication.factor={replicas}\n\
         share.coordinator.state.topic.min.isr={in_sync}\n\
         default.replication.factor={replicas}\n\
         group.initial.rebalance.delay.ms=0\n\
         group.consumer.min.heartbeat.interval.ms=300\n\
         group.consumer.heartbeat.interval.ms=1000\n\
         auto.create.topics.enable=false\n",
        controller = own.controller,
        data = home.join("data").display(),
        in_sync = replicas.div_ceil(2),
    );
    if let Some(certificates) = certificates {
        secured_listeners(&mut text, certificates);
    }
    if options.authorizer {
        text.push_str(
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n\
             allow.everyone.if.no.acl.found=true\n",
        );
    }
    for (key, value) in &options.extra {
        let _ = writeln!(text, "{key}={value}");
    }
    text
}

fn secured_listeners(text: &mut String, certificates: &Certificates) {
    let _ = write!(
        text,
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={}\n\
         ssl.truststore.type=PEM\n\
         ssl.truststore.location={}\n",
        certificates.server.display(),
        certificates.ca.display(),
    );
    let plain = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
    );
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    // Accepts unsigned tokens until they expire.
    let bearer = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                  unsecuredLoginStringClaim_sub=\"broker\";";
    for listener in ["login", "secure"] {
        let _ = writeln!(
            text,
            "listener.name.{listener}.oauthbearer.sasl.jaas.config={bearer}"
        );
        let _ = writeln!(
            text,
            "listener.name.{listener}.plain.sasl.jaas.config={plain}"
        );
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            let _ = writeln!(
                text,
                "listener.name.{listener}.{mechanism}.sasl.jaas.config={scram}"
            );
        }
    }
}
