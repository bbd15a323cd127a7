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
 * Appends records with Kafka's own Java client, one after the other: each value is a file's bytes, untouched.
 *
 * Kafka's console producer cannot do this: it reads values line by line, and a carriage return, which ends every
 * HL7 v2 segment, ends a line there.
 *
 * Arguments: BOOTSTRAP_SERVERS TOPIC RECORDS_FILE, in which each line is one record, its fields parted by tabs:
 * VALUE_FILE COMPRESSION KEY [HEADER=VALUE]...   COMPRESSION is none, gzip, snappy, lz4 or zstd; an empty KEY means
 * no key. Prints "PARTITION OFFSET" for each once every in-sync replica has it.
 */
public final class Produce {
    private static final long LIMIT_S = 30;

    public static void main(String[] arguments) throws Exception {
        for (String line : Files.readAllLines(Path.of(arguments[2]))) {
            String[] fields = line.split("\t", -1);
            byte[] key = fields[2].isEmpty() ? null : fields[2].getBytes(StandardCharsets.UTF_8);
            byte[] value = Files.readAllBytes(Path.of(fields[0]));
            ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(arguments[1], key, value);
            for (int i = 3; i < fields.length; i++) {
                String[] header = fields[i].split("=", 2);
                record.headers().add(header[0], header[1].getBytes(StandardCharsets.UTF_8));
            }
            append(record, arguments[0], fields[1]);
        }
    }

    private static void append(ProducerRecord<byte[], byte[]> record, String servers, String compression)
            throws Exception {
        Properties settings = new Properties();
        settings.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
        settings.put(ProducerConfig.ACKS_CONFIG, "all");
        settings.put(ProducerConfig.MAX_REQUEST_SIZE_CONFIG, 8 * 1024 * 1024);
        settings.put(ProducerConfig.COMPRESSION_TYPE_CONFIG, compression);
        ByteArraySerializer bytes = new ByteArraySerializer();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, bytes, bytes)) {
            RecordMetadata appended = producer.send(record).get(LIMIT_S, TimeUnit.SECONDS);
            System.out.println(appended.partition() + " " + appended.offset());
        }
    }
}
