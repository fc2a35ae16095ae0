import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.Callback;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * A relay with Kafka's own client, to compare the service with.
 *
 * <pre>java Relay BOOTSTRAP IN OUT PARTITIONS COUNT EMITS DROP_PERCENT</pre>
 *
 * Its arguments and its result are those of {@code bare-loop relay} (benches/src/relay.c), without the keys.
 */
public final class Relay {
    private static final long LIMIT_NANOS = Duration.ofMinutes(5).toNanos();

    public static void main(String[] args) throws IOException {
        if (args.length != 7) {
            die("usage: BOOTSTRAP IN OUT PARTITIONS COUNT EMITS DROP_PERCENT");
        }
        String out = args[2];
        long count = Long.parseLong(args[4]);
        int emits = Integer.parseInt(args[5]);
        long drop = Long.parseLong(args[6]);
        KafkaProducer<byte[], byte[]> producer = producer(args[0]);
        KafkaConsumer<byte[], byte[]> consumer = consumer(args[0], args[1], Integer.parseInt(args[3]));
        AtomicLong acknowledged = new AtomicLong();
        Callback delivered = (metadata, error) -> {
            if (error != null) {
                die("delivery: " + error);
            }
            acknowledged.incrementAndGet();
        };
        long seen = 0;
        long bytes = 0;
        long produced = 0;
        long started = 0;
        long cpuStarted = 0;
        long deadline = System.nanoTime() + LIMIT_NANOS;
        while (seen < count) {
            if (System.nanoTime() > deadline) {
                die("not finished in time");
            }
            ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(100));
            if (started == 0 && !records.isEmpty()) {
                started = System.nanoTime();
                cpuStarted = cpuNanos();
            }
            for (ConsumerRecord<byte[], byte[]> record : records) {
                seen++;
                bytes += record.value().length;
                if (record.offset() % 100 < drop) {
                    continue;
                }
                for (int copy = 0; copy < emits; copy++) {
                    producer.send(new ProducerRecord<>(out, record.key(), record.value()), delivered);
                    produced++;
                }
            }
        }
        producer.flush();
        if (acknowledged.get() != produced) {
            die(acknowledged.get() + " of " + produced + " acknowledged");
        }
        double seconds = (System.nanoTime() - started) / 1e9;
        double cpuSeconds = (cpuNanos() - cpuStarted) / 1e9;
        System.out.printf(
            Locale.ROOT,
            "{\"records\": %d, \"bytes\": %d, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"peak_kib\": %d}%n",
            seen, bytes, seconds, cpuSeconds, peakKib());
        // Nothing is committed, so the process can exit without cleanup.
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }

    private static KafkaConsumer<byte[], byte[]> consumer(String bootstrap, String topic, int partitions) {
        Map<String, Object> config = Map.of(
            "bootstrap.servers", bootstrap,
            "enable.auto.commit", "false",
            "isolation.level", "read_committed",
            "fetch.max.bytes", "4194304",
            "max.poll.records", "1024");
        KafkaConsumer<byte[], byte[]> consumer =
            new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        List<TopicPartition> all = new ArrayList<>();
        for (int partition = 0; partition < partitions; partition++) {
            all.add(new TopicPartition(topic, partition));
        }
        consumer.assign(all);
        consumer.seekToBeginning(all);
        return consumer;
    }

    private static KafkaProducer<byte[], byte[]> producer(String bootstrap) {
        Map<String, Object> config = Map.of(
            "bootstrap.servers", bootstrap,
            "enable.idempotence", "true",
            "acks", "all",
            "linger.ms", "5",
            "batch.size", "1000000",
            "buffer.memory", Long.toString(98_681L << 10),
            "compression.type", "none");
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private static long cpuNanos() {
        return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    private static long peakKib() throws IOException {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM:")) {
                return Long.parseLong(line.replaceAll("[^0-9]", ""));
            }
        }
        throw new IOException("/proc/self/status has no VmHWM");
    }

    private static void die(String why) {
        System.err.println("Relay: " + why);
        Runtime.getRuntime().halt(1);
    }
}
