import software.amazon.awssdk.services.sts.StsClient;

/** The SDK for Java, version 2. */
final class V2 {
    public static void main(String[] arguments) throws InterruptedException {
        var sts = StsClient.create();
        Rounds.run(arguments, () -> sts.getCallerIdentity().arn());
    }
}
