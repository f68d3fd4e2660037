import com.amazonaws.services.securitytoken.AWSSecurityTokenServiceClientBuilder;
import com.amazonaws.services.securitytoken.model.GetCallerIdentityRequest;

/** The SDK for Java, version 1. */
final class V1 {
    public static void main(String[] arguments) throws InterruptedException {
        var sts = AWSSecurityTokenServiceClientBuilder.defaultClient();
        Rounds.run(arguments, () -> sts.getCallerIdentity(new GetCallerIdentityRequest()).getArn());
    }
}
