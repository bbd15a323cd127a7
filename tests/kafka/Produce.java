import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Appends one record with Kafka's own Java client: the value is a file's bytes, untouched.
 *
 * Kafka's console producer cannot do this: it reads values line by line, and a carriage return, which ends every
 * HL7 v2 segment, ends a line there.
 *
 * Arguments: BOOTSTRAP_SERVERS TOPIC VALUE_FILE KEY [HEADER=VALUE]...   An empty KEY means no key.
 * The system property "compression" names a codec: gzip, snappy, lz4 or zstd.
 * Prints "PARTITION OFFSET" once every in-sync replica has the record.
 */
public final class Produce {
    private static final long LIMIT_S = 30;

    public static void main(String[] arguments) throws Exception {
        byte[] value = Files.readAllBytes(Path.of(arguments[2]));
        byte[] key = arguments[3].isEmpty() ? null : arguments[3].getBytes(StandardCharsets.UTF_8);
        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(arguments[1], key, value);
        for (int i = 4; i < arguments.length; i++) {
            String[] header = arguments[i].split("=", 2);
            record.headers().add(header[0], header[1].getBytes(StandardCharsets.UTF_8));
        }
        Properties settings = new Properties();
        settings.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(ProducerConfig.ACKS_CONFIG, "all");
        settings.put(ProducerConfig.MAX_REQUEST_SIZE_CONFIG, 8 * 1024 * 1024);
        settings.put(ProducerConfig.COMPRESSION_TYPE_CONFIG, System.getProperty("compression", "none"));
        ByteArraySerializer bytes = new ByteArraySerializer();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, bytes, bytes)) {
            RecordMetadata appended = producer.send(record).get(LIMIT_S, TimeUnit.SECONDS);
            System.out.println(appended.partition() + " " + appended.offset());
        }
    }
}
